"""Other people's files and libraries: published weights, Hugging Face."""
