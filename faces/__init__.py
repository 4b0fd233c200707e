"""faces renders synthetic face identities to train on. The people in the images do not exist.

The shape of the heads comes from MakeHuman's CC0 morph targets (see mesh.py). Skin, eyes, brows, hair, beards, light,
backgrounds and cameras are procedural. The modules, from a person to a folder of images:

identity     what all photographs of a person share
shape        of that, the shape of the head
nuisance     what differs between them: expression, hair, what is worn
setting      and light, background, clothes, what is in the way, camera
ceiling      what differs if a ceiling camera takes them
mesh         the head model and its cache
build_mesh   the head model, made from MakeHuman's files
geometry     the vertices of one photograph: shape, expression, pose, projection
texture      a person's painted skin
hair         ribbons of strands
accessories  glasses and hats
noise        smooth and strand-like noise
raster       the z-buffer
materials    what each pixel is made of
light        lamps, sky and shadows
backdrop     what is behind the person, and in front
camera       from exposure to JPEG
render       all of the above for one image
dataset      the folder, list file, manifest and worker processes
"""

from tripletloss.base.command import begin

# Part of every manifest. Increase it whenever the same seed no longer gives the same images.
VERSION = 2

begin()
