"""One HTML file about runs, from their folders alone. It needs no network and no server."""
