"""A toy backend for the tests of the plugin machinery. Do not use it to protect anything."""
