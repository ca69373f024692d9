"""The controller's guards: what stands between an action that a rule wants and the command; one module each."""
