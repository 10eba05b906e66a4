"""The machine: text and files, devices and memory, versions, what foreign code may change."""
