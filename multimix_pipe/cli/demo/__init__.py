"""The demo: pack generated or given images and train on them with and without mixing."""
