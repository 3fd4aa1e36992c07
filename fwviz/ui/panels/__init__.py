"""The parts of the page: one file per panel, each builds its components and says what they are."""
