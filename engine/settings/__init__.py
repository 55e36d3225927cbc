"""What a run is told: keys, recipes, methods and their checks, as pure data. No torch."""
