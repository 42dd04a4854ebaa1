"""Where the files of a model are: a folder, the hub, the catalogue; nothing here reads a weight."""
