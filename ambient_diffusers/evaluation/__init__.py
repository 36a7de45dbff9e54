"""What a model remembers, and what it cost to make it forget: each part writes JSON and PNG into its output folder."""
