"""Where rows come from: files, folders, data sets of the hub; how they are shared out and how often taken."""
