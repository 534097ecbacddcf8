"""The torch-native backend: decodes with libjpeg-turbo in threads, and does not need DALI."""
