"""Tasks: images and labels, the losses a method may see, and the scores that judge a merge."""
