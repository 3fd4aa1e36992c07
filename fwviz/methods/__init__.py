"""One file per merge method; a leading underscore marks what several of them share."""
