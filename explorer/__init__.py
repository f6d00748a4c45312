"""The explorer: a store in a browser, from a server (`serve`) or as a folder of files (`site`). The bundle is in `bundle/`."""
