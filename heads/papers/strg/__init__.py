"""STRG, Videos as Space-Time Region Graphs (ECCV 2018): its graph convolutions."""
