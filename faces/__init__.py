"""faces: renders synthetic face identities to train on. Nobody in the pictures exists.

The shape of the heads comes from MakeHuman's CC0 morph targets (see mesh.py); skin, eyes, brows, hair, beards, light,
backgrounds and cameras are procedural. Where to look:

identity    what makes a person             nuisance   what differs between photographs of that person
mesh        the head model and its cache    geometry   vertices of one photograph: shape, expression, pose, view
raster      z-buffer                        noise      smooth and strand-like noise
hair        ribbons of strands              accessories  glasses, hats
texture     a person's painted skin         materials  what each pixel is made of
light       lamps, sky, shadows             backdrop   what is behind the person, and in the way
camera      exposure to JPEG                render     all of it, to one picture
dataset     folder, list file, manifest, workers
"""

# Part of every manifest: raise it whenever the same seed no longer gives the same pictures.
VERSION = 2
