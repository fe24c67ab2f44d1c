"""The doors: what a person writes is checked here, and only here, on its way in."""
