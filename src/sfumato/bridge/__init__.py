"""The bridge to diffusers: its pipelines read as models, and models written as its pipelines."""
