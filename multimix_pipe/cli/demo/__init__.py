"""The demo: made or given images, packed, trained on with and without mixing."""
