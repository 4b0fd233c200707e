"""faces: renders synthetic face identities to train on. Nobody in the pictures exists.

The shape of the heads comes from MakeHuman's CC0 morph targets (see mesh.py); skin, eyes, brows, hair, beards, light,
backgrounds and cameras are procedural. Where to look:

identity  what makes a person           nuisance  what differs between photographs of that person
mesh      the head model and its cache  geometry  vertices of one photograph, from shape, expression and pose
raster    z-buffer                      hair      strands, hats            eyewear   glasses
texture   a person's painted skin       shading   eyes, light, shadow      noise     smooth and strand-like noise
backdrop  background and what gets into the way      camera  exposure to JPEG
render    all of it, to one picture     dataset   folders, list file, manifest, workers
"""

# Part of every manifest: raise it whenever the same seed no longer gives the same pictures.
VERSION = 1
