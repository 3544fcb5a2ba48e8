"""The config: its shape (`schema`), and the one reader that makes it from YAML (`reader`)."""
