"""What puts virtpilot on machines: the lab, the containers, the units."""
