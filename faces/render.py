"""A photograph of a person, from all the other modules."""

import cv2
import numpy as np

from faces import accessories, backdrop, camera, hair, light, materials
from faces.geometry import aim, express, find_landmarks, head_surface, join, shape_person
from faces.identity import Identity
from faces.mesh import Head, Part
from faces.nuisance import Nuisance
from faces.raster import interpolate, rasterize
from faces.texture import paint_skin

# Pictures are drawn this many times larger and scaled down, for smooth edges and strands.
SUPERSAMPLING = 2


class Portrait:
    """What all photographs of one person share: shape, skin and scalp."""

    def __init__(self, head: Head, person: Identity) -> None:
        """Prepare a person's photographs."""
        self.head, self.person = head, person
        self.landmarks = find_landmarks(head)
        self.neutral = shape_person(head, person, self.landmarks)
        self.skin = paint_skin(head, person)
        self.scalp = hair.find_scalp(head, person, self.neutral)

    def photograph(self, nuisance: Nuisance, size: int) -> np.ndarray:
        """A photograph of the person, (size, size, 3) uint8 BGR."""
        cv2.setNumThreads(1)
        side = size * SUPERSAMPLING
        rng = np.random.default_rng(nuisance.seed)
        view = aim(self.neutral, self.landmarks, nuisance, side)
        scene, lenses, eyes = self._scene(nuisance, rng)
        scene = scene._replace(vertices=view.placed(scene.vertices), normals=view.turned(scene.normals))
        seen = ~hair.behind_the_head(scene)
        triangles, part = scene.triangles[seen], scene.part[seen]

        def holes(triangle, weights):
            return materials.hair_holes(interpolate(scene.surface_uv, triangles, triangle, weights))

        one_sided = part < Part.HAIR
        triangle, weights, _ = rasterize(
            view.project(scene.vertices), triangles, side, side, one_sided, (part == Part.HAIR, holes)
        )
        pixels = materials.Pixels(scene._replace(triangles=triangles, part=part), triangle, weights)
        self._dress(pixels, nuisance, eyes, view)
        lit = light.cast_shadows(pixels, scene, nuisance.light, nuisance.light["softness"] * side / 112)
        colour = light.illuminate(pixels, nuisance.light, lit, view)

        picture = backdrop.paint_backdrop(nuisance.backdrop, rng, side)
        picture.reshape(-1, 3)[pixels.index] = colour.T
        if lenses is not None:
            self._tint(picture, view.project(view.placed(lenses.reshape(-1, 3))), nuisance.glasses)
        if nuisance.occluder:
            picture = backdrop.put_in_front(picture, nuisance.occluder, rng, self.person.skin)
        skin = pixels.part == Part.SKIN
        bright = float((colour[:, skin].mean(1) * camera.LUMINANCE).sum()) if skin.any() else camera.METERED
        picture = camera.expose(picture, bright, nuisance.camera)
        picture = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
        return camera.develop(picture, nuisance.camera)

    def _scene(self, nuisance, rng):
        """The Surface of everything, the outlines of the lenses or None, and the centres of the eyeballs by part."""
        vertices = express(self.head, self.neutral, nuisance)
        body = head_surface(self.head, vertices)
        surfaces, lenses = [body], None
        strands = hair.grow(self.scalp, vertices, body.normals, self.person, nuisance.hair, rng)
        if strands is not None:
            surfaces.append(strands)
        if nuisance.glasses:
            frame, lenses = accessories.wear_glasses(nuisance.glasses, self.head, self.landmarks, vertices)
            surfaces.append(frame)
        if nuisance.cover:
            surfaces.append(accessories.wear_cover(nuisance.cover, self.scalp))
        eyes = {
            Part.LEFT_EYE: vertices[self.landmarks.left_eye].mean(0),
            Part.RIGHT_EYE: vertices[self.landmarks.right_eye].mean(0),
        }
        return join(surfaces), lenses, eyes

    def _dress(self, pixels, nuisance, eyes, view):
        """Give every pixel its material."""
        if nuisance.cover:
            materials.dress_plain(pixels, Part.CLOTH, nuisance.cover["colour"], 0, 20)
        if nuisance.glasses:
            materials.dress_plain(pixels, Part.FRAME, nuisance.glasses["colour"], 1.0, 40)
        materials.dress_skin(pixels, self.skin, self.person, nuisance, abs(view.scale))
        materials.dress_mouth(pixels)
        materials.dress_eyes(pixels, self.person, nuisance, eyes, view)
        materials.dress_hair(pixels, nuisance.hair["colour"])

    @staticmethod
    def _tint(picture, points, glasses):
        """Darken what is behind the lenses, and add reflections; points: (2 * LENS_POINTS, 3), in pixels."""
        mask = np.zeros(picture.shape[:2], np.float32)
        for outline in points[:, :2].reshape(2, -1, 2):
            cv2.fillPoly(mask, [outline.round().astype(np.int32)], 1)
        slope = np.linspace(0, 1, len(mask), dtype=np.float32)
        glare = 0.25 * glasses["glare"] * (0.5 + 0.5 * np.sin(9 * (slope[:, None] + 0.6 * slope)))
        tinted = picture * (1 - glasses["tint"]) + glare[..., None]
        picture += mask[..., None] * (tinted - picture)
