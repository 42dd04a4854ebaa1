"""Pages for people: numbers, charts and pictures in one HTML file that needs nothing from elsewhere."""
