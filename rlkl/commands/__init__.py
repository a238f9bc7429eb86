"""The commands of `rlkl`, one file each; the text that a command prints is made in the file beside it."""
