"""What rows and models must have in common: what a row holds that a model or its template cannot take."""
