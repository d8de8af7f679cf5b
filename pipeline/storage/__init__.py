"""Read and write files whole, in local folders or on S3."""
