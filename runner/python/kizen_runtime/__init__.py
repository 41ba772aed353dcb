"""The harness: runs one Code Step inside its own process and reports to the sidecar over an inherited socket."""
