"""The reference backend: plaintext behind the SafeTensor interface."""
