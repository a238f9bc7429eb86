"""Numbers and pictures from the folders of runs. Nothing here changes a run."""
