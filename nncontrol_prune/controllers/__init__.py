"""What a controller is: specs, architectures, the bundle format, importers and exporters."""
