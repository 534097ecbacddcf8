"""The torch-native backend: decodes with libjpeg-turbo in threads, needs no DALI and imports none."""
