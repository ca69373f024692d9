"""Dashboards as code, the JSON made from it, and provisioning."""
