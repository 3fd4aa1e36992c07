"""How the embedded pool is made: packages, image bank, pretraining, fine-tuning, card. Never imported by the app."""
