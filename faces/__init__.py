"""faces renders synthetic face identities to train on. The people in the images do not exist.

The shape of the heads comes from MakeHuman's CC0 morph targets (see mesh.py). Skin, eyes, brows, hair, beards, light,
backgrounds and cameras are procedural. The modules, from a person to a folder of images:

identity     what makes a person who they are
nuisance     what differs between photographs of one person
mesh         the head model and its cache
geometry     the vertices of one photograph: shape, expression, pose, view
texture      a person's painted skin
hair         ribbons of strands
accessories  glasses and hats
noise        smooth and strand-like noise
raster       the z-buffer
materials    what each pixel shows
light        lamps, sky and shadows
backdrop     what is behind the person, and in front
camera       from exposure to JPEG
render       all of the above, for one image
dataset      the folder, list file and manifest, and the worker processes
"""

from tripletloss.base.command import answer_ctrl_c

# Part of every manifest. Increase it whenever the same seed no longer gives the same images.
VERSION = 2

answer_ctrl_c()
