"""A small renderer: triangles and hairs in space, lit, seen through a lens, with a label each.

Lengths are decimetres: x to the right of the picture, y up, z to the camera. Colours are linear
light, red first. What it does is what a graphics card does, in NumPy and numba: a z-buffer for
what the camera sees, another for what the light reaches (Williams, SIGGRAPH 1978), hair by its
direction (Kajiya and Kay, SIGGRAPH 1989, section 4), dark hollows by the depth around them
(Luft et al., SIGGRAPH 2006), light that spreads below the skin (d'Eon et al., EGSR 2007).
"""

from types import SimpleNamespace

import cv2
import numba
import numpy as np

BRONZE = np.array([0.36, 0.2, 0.085])


def smoothstep(low, high, x):
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def unit(vectors):
    """Vectors (..., 3) of length 1."""
    return vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-9)


def linear(srgb):
    """sRGB 0..255 to linear light 0..1."""
    return (np.clip(srgb, 0, 255) / 255) ** 2.2


def rotation(yaw, pitch, roll):
    """Turns about y, then x, then z; radians."""
    a, b, c = np.cos([yaw, pitch, roll])
    d, e, f = np.sin([yaw, pitch, roll])
    about_y = np.array([[a, 0, d], [0, 1, 0], [-d, 0, a]])
    about_x = np.array([[1, 0, 0], [0, b, -e], [0, e, b]])
    about_z = np.array([[c, -f, 0], [f, c, 0], [0, 0, 1]])
    return about_z @ about_x @ about_y


# ------------------------------------------------------------------- loops that NumPy cannot do


@numba.njit(cache=True)
def rasterise(x, y, w, triangles, height, width):
    """The nearest triangle at each pixel.

    `w` is 1 / distance. Returns (triangle or -1, barycentric weights (H, W, 3), w), with
    weights that are right in perspective.
    """
    index = np.full((height, width), -1, np.int32)
    weights = np.zeros((height, width, 3), np.float32)
    nearest = np.zeros((height, width), np.float32)
    for t in range(len(triangles)):
        a, b, c = triangles[t]
        area = (x[b] - x[a]) * (y[c] - y[a]) - (x[c] - x[a]) * (y[b] - y[a])
        if w[a] <= 0 or w[b] <= 0 or w[c] <= 0 or abs(area) < 1e-9:
            continue
        left = max(0, int(np.ceil(min(x[a], x[b], x[c]) - 0.5)))
        right = min(width - 1, int(np.floor(max(x[a], x[b], x[c]) - 0.5)))
        top = max(0, int(np.ceil(min(y[a], y[b], y[c]) - 0.5)))
        bottom = min(height - 1, int(np.floor(max(y[a], y[b], y[c]) - 0.5)))
        for row in range(top, bottom + 1):
            for column in range(left, right + 1):
                u, v = column + 0.5, row + 0.5
                wa = ((x[b] - u) * (y[c] - v) - (x[c] - u) * (y[b] - v)) / area
                wb = ((x[c] - u) * (y[a] - v) - (x[a] - u) * (y[c] - v)) / area
                wc = 1 - wa - wb
                if min(wa, wb, wc) < -1e-6:
                    continue
                depth = wa * w[a] + wb * w[b] + wc * w[c]
                if depth > nearest[row, column]:
                    nearest[row, column], index[row, column] = depth, t
                    weights[row, column, 0] = wa * w[a] / depth
                    weights[row, column, 1] = wb * w[b] / depth
                    weights[row, column, 2] = wc * w[c] / depth
    return index, weights, nearest


@numba.njit(cache=True)
def draw_hairs(x, y, w, thick, nearest):
    """Draws polylines (N, K), a pixel wide, where they are in front of `nearest`, in place.

    `thick` (N,) is the width in pixels: of a hair thinner than one, pixels are left out.
    Returns the hair at each pixel, or -1, and the place along it, 0 to K - 1.
    """
    height, width = nearest.shape
    hair = np.full((height, width), -1, np.int32)
    along = np.zeros((height, width), np.float32)
    count, points = x.shape
    for n in range(count):
        for k in range(points - 1):
            dx, dy = x[n, k + 1] - x[n, k], y[n, k + 1] - y[n, k]
            steps = int(max(abs(dx), abs(dy))) + 1
            for step in range(steps):
                t = step / steps
                column, row = int(x[n, k] + t * dx), int(y[n, k] + t * dy)
                if column < 0 or row < 0 or column >= width or row >= height:
                    continue
                share = thick[n] * min(1.0, 3.2 * (1 - (k + t) / (points - 1)))  # a thin tip
                if share < 1 and (row * 1973 + column * 9277 + n * 26699) & 1023 > share * 1023:
                    continue  # a hash instead of random numbers: the same each time
                depth = w[n, k] + t * (w[n, k + 1] - w[n, k])
                if depth > nearest[row, column] * (0.9992 if hair[row, column] < 0 else 1):
                    nearest[row, column] = max(depth, nearest[row, column])
                    hair[row, column], along[row, column] = n, k + t
    return hair, along


@numba.njit(cache=True)
def lattice(i, j, k):
    n = (i * 73856093) ^ (j * 19349663) ^ (k * 83492791)
    n = (n ^ (n >> 13)) * 1274126177
    return ((n ^ (n >> 16)) & 65535) / 32767.5 - 1.0


@numba.njit(cache=True)
def noise(points, frequency, octaves):
    """Smooth noise, about -1 to 1, at points (N, 3)."""
    out = np.zeros(len(points), np.float32)
    for n in range(len(points)):
        size, scale = 0.625, frequency
        for octave in range(octaves):
            x, y, z = (
                points[n, 0] * scale + 17.3 * octave,
                points[n, 1] * scale,
                points[n, 2] * scale,
            )
            i, j, k = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
            u, v, s = x - i, y - j, z - k
            u, v, s = u * u * (3 - 2 * u), v * v * (3 - 2 * v), s * s * (3 - 2 * s)
            for a in range(2):
                for b in range(2):
                    for c in range(2):
                        share = (u if a else 1 - u) * (v if b else 1 - v) * (s if c else 1 - s)
                        out[n] += size * share * lattice(i + a, j + b, k + c)
            size, scale = size / 2, scale * 2.03
    return out


# ------------------------------------------------------------------------------------- surfaces


def surface(points, triangles, part, colour, gloss=0.1, material="plain", look=None, **where):
    """Triangles in space. `look(seen)` may change what is seen of them, pixel by pixel.

    material: plain, skin, eye, metal, glass or dark glass. `where` may hold `rest`, points of
    the same vertices that do not move, for patterns, and `uv`.
    """
    points = np.asarray(points, float)
    colour = np.broadcast_to(np.asarray(colour, float), points.shape)
    where = {"rest": points, "uv": np.zeros((len(points), 2))} | where
    return SimpleNamespace(
        points=points, triangles=np.asarray(triangles, np.int64), part=part, colour=colour,
        gloss=gloss, material=material, look=look, **where,
    )  # fmt: skip


def grid_triangles(rows, columns, closed=False):
    """The triangles of a grid of points; `closed` joins the last column to the first."""
    r, c = np.meshgrid(np.arange(rows - 1), np.arange(columns - (not closed)), indexing="ij")
    a, b = r * columns + c, r * columns + (c + 1) % columns
    quads = np.stack([a, a + columns, b + columns, b], -1).reshape(-1, 4)
    return np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


def sheet(rows, part, colour, closed=False, **more):
    """A surface through rows of points (R, C, 3)."""
    rows = np.asarray(rows)
    triangles = grid_triangles(rows.shape[0], rows.shape[1], closed)
    return surface(rows.reshape(-1, 3), triangles, part, colour, **more)


def tube(path, radius, part, colour, sides=8, **more):
    """A tube along a path (K, 3); `radius` is one number or K."""
    path = np.asarray(path, float)
    radius = np.broadcast_to(np.asarray(radius, float), len(path))[:, None, None]
    tangent = unit(np.gradient(path, axis=0))
    across = np.where(np.abs(tangent[:, 1:2]) > 0.9, [1.0, 0, 0], [0, 1.0, 0])
    across = unit(np.cross(tangent, across))
    angle = np.linspace(0, 2 * np.pi, sides, endpoint=False)[:, None]
    ring = across[:, None] * np.cos(angle) + np.cross(tangent, across)[:, None] * np.sin(angle)
    return sheet(path[:, None] + radius * ring, part, colour, True, **more)


def ball(centre, radius, part, colour, **more):
    """An ellipsoid; `radius` is one number or three."""
    up = np.linspace(-np.pi / 2, np.pi / 2, 14)[:, None]
    around = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    ring = [np.cos(up) * np.cos(around), np.sin(up) + 0 * around, np.cos(up) * np.sin(around)]
    return sheet(np.stack(ring, -1) * radius + centre, part, colour, True, **more)


def hairs(lines, colour, part, width, gloss=1.0):
    """Polylines (N, K, 3) with a colour each; `width` in decimetres; part 0: no label."""
    return SimpleNamespace(
        lines=np.float32(lines), colour=colour, part=part, gloss=gloss,
        width=np.full(len(lines), width),
    )  # fmt: skip


def vertex_normals(points, triangles):
    normals = np.zeros_like(points)
    corners = points[triangles]
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    for corner in range(3):
        np.add.at(normals, triangles[:, corner], flat)
    return unit(normals)


def look_up(image, x, y, how=cv2.INTER_LINEAR, border=cv2.BORDER_CONSTANT):
    """What `image` holds at places of any shape, in pixels from the centre of the first."""
    x, y = np.float32(x), np.float32(y)
    rows = -(-x.size // 4096)  # OpenCV takes at most 32,767 in a row
    table = np.zeros((2, rows * 4096), np.float32)
    table[0, : x.size], table[1, : x.size] = x.ravel(), y.ravel()
    found = cv2.remap(image, *table.reshape(2, rows, 4096), how, borderMode=border)
    return found.ravel()[: x.size].reshape(x.shape)


class Radius:
    """How far a surface is from an axis or a point, by two coordinates: a smoothed map."""

    def __init__(self, u, v, radius, u_range, v_range, size=(72, 48), blur=0.8):
        self.ranges, self.size = (u_range, v_range), size
        column, row = (p.round().astype(int) for p in self.places(u, v))
        far, known = np.zeros(size[::-1], np.float32), np.zeros(size[::-1], np.float32)
        np.maximum.at(far, (row.clip(0, size[1] - 1), column.clip(0, size[0] - 1)), radius)
        known[far > 0] = 1
        for _ in range(12):  # what no point fell into is filled from its neighbours
            wrap = lambda x: np.hstack([x[:, -2:], x, x[:, :2]])
            near_by, share = (cv2.blur(wrap(x), (3, 3))[:, 2:-2] for x in (far * known, known))
            fill = (known == 0) & (share > 0)
            far[fill], known[fill] = (near_by / np.maximum(share, 1e-6))[fill], 1
        around = np.hstack([far[:, -6:], far, far[:, :6]])
        self.map = cv2.GaussianBlur(around, (0, 0), blur)[:, 6:-6].copy()

    def places(self, *uv):
        pairs = zip(uv, self.ranges, self.size, strict=True)
        return [(p - low) / (high - low) * (n - 1) for p, (low, high), n in pairs]

    def __call__(self, u, v):
        u, v = np.broadcast_arrays(u, v)
        return look_up(self.map, *self.places(u, v), border=cv2.BORDER_REPLICATE)


def spherical(points, centre):
    """Azimuth (0 in front), elevation and distance of points about a centre."""
    apart = points - centre
    distance = np.linalg.norm(apart, axis=-1) + 1e-9
    return np.arctan2(apart[:, 0], apart[:, 2]), np.arcsin(apart[:, 1] / distance), distance


def on_sphere(azimuth, elevation, radius, centre):
    flat = radius * np.cos(elevation)
    apart = [flat * np.sin(azimuth), radius * np.sin(elevation), flat * np.cos(azimuth)]
    return np.stack(np.broadcast_arrays(*apart), -1) + centre


# ---------------------------------------------------------------------------------------- light


class Camera:
    """A pinhole at `distance`; `scale` pixels a decimetre at the origin, seen at `centre`."""

    def __init__(self, distance, scale, centre, size, fine):
        self.distance, self.scale, self.fine = distance, scale * fine, fine
        self.centre = np.asarray(centre, float) * fine
        self.width, self.height = size[0] * fine, size[1] * fine

    def project(self, points):
        """(..., 3) -> x, y in fine pixels, and 1 / distance."""
        w = 1 / np.maximum(self.distance - points[..., 2], 1e-3)
        x = self.centre[0] + self.scale * self.distance * points[..., 0] * w
        return x, self.centre[1] - self.scale * self.distance * points[..., 1] * w, w


class Shadows:
    """What the light reaches: a depth map of surfaces and one of hair, from there."""

    SIZE, EXTENT, MIDDLE = 420, 5.2, np.array([0, -0.6, -0.8])

    def __init__(self, shot, points, triangles, strands):
        side = unit(np.cross(shot.light, [0.02, 1.0, 0.03]))
        self.axes = np.stack([side, np.cross(shot.light, side), shot.light])
        self.scale, self.soft = self.SIZE / self.EXTENT, shot.soft
        *_, self.solid = rasterise(*self.project(points), triangles, self.SIZE, self.SIZE)
        self.hair = np.zeros((self.SIZE, self.SIZE), np.float32)
        for one in strands:
            if one.part:
                draw_hairs(*self.project(one.lines), np.minimum(1, one.width * 1e3), self.hair)

    def project(self, points):
        x, y, z = np.moveaxis((points - self.MIDDLE) @ self.axes.T, -1, 0)
        return x * self.scale + self.SIZE / 2, y * self.scale + self.SIZE / 2, z + 20

    def __call__(self, places, thin):
        """The share of light that reaches points (N, 3); hair lets exp(-thin * d) through."""
        x, y, w = (np.float32(v) for v in self.project(places))
        reach, total = 1.2 + 0.6 * self.soft * self.scale, np.zeros_like(w)
        angles = np.arange(5) * 1.257
        ring = [(np.cos(a + r) * r, np.sin(a + r) * r) for r in (0.5, 1.0) for a in angles]
        for dx, dy in [(0, 0), *ring]:
            at = x + np.float32(dx * reach - 0.5), y + np.float32(dy * reach - 0.5)
            solid, hair = (look_up(m, *at, cv2.INTER_NEAREST) for m in (self.solid, self.hair))
            through = np.exp(-thin * np.clip(hair - w - 0.02, 0, 0.8))
            total += np.clip(1 - (solid - w - 0.035) / 0.03, 0, 1) * through
        return total / (len(ring) + 1)


def openness(depth, scale):
    """Ambient light at each pixel, 0 to 1: less in hollows, by the depth around them."""
    result = np.ones_like(depth)
    for reach, strength in ((0.06, 2.2), (0.2, 1.1), (0.5, 0.4)):
        sigma = max(0.8, reach * scale)
        factor = max(1, int(sigma / 4))
        small = cv2.resize(
            depth, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA
        )
        wide = cv2.resize(cv2.GaussianBlur(small, (0, 0), sigma / factor), depth.shape[::-1])
        result -= np.clip(strength * (wide - depth), 0, 0.4)
    return np.clip(result, 0.15, 1)


def surroundings(direction, shot, window=3.0):
    """Light from all around (N, 3): a ceiling, walls, and a window where the key light is."""
    up, (sky, wall, _) = direction[..., 1:2], shot.background
    wall = 0.35 * wall + 0.1
    light = wall + smoothstep(0.0, 0.9, up) * (0.5 * sky + 0.35)
    light = light - 0.6 * wall * smoothstep(0, 0.9, -up)
    return light + window * smoothstep(0.72, 0.9, direction @ shot.light)[..., None] * shot.warm


def backdrop(shot, size, rng):
    """A background far out of focus, linear (height, width, 3)."""
    rows = np.linspace(0, 1, 48)[:, None, None]
    small = np.zeros((48, 48, 3), np.float32)
    small[:] = shot.background[0] * (1 - rows) + shot.background[1] * rows
    for _ in range(rng.integers(3, 12)):
        x, y, w, h = rng.integers(-6, 48, 2).tolist() + rng.integers(3, 26, 2).tolist()
        block = np.s_[max(0, y) : max(0, y + h), max(0, x) : max(0, x + w)]
        colour = shot.background[rng.integers(3)] * rng.uniform(0.3, 1.5)
        small[block] = small[block] * 0.25 + 0.75 * colour
    for _ in range(rng.integers(0, 9)):
        spot = np.zeros((48, 48), np.float32)
        cv2.circle(
            spot, tuple(map(int, rng.integers(0, 48, 2))), int(rng.integers(1, 5)), 1.0, -1
        )
        small += spot[..., None] * rng.uniform(0.1, 0.8) * rng.uniform(0.7, 1, 3)
    small = cv2.GaussianBlur(small, (0, 0), rng.uniform(0.8, 4))
    return cv2.resize(small, size, interpolation=cv2.INTER_CUBIC).clip(0, 2)


def develop(light, shot, size, rng):
    """Lens and sensor: shrinks, blurs, adds noise, and encodes linear light as eight bits."""
    image = cv2.resize(light * np.float32(shot.exposure), size, interpolation=cv2.INTER_AREA)
    if shot.blur > 0.3:
        image = cv2.GaussianBlur(image, (0, 0), shot.blur * size[1] / 218)
    image = image * (2.51 * image + 0.03) / (image * (2.43 * image + 0.59) + 0.14)  # film
    image = image + 0.18 * (image.mean(2, keepdims=True) - image)  # film makes colours loud
    image = 255 * np.clip(image, 0, 1) ** (1 / 2.2)
    grain = (
        rng.normal(0, shot.noise, image.shape)
        + rng.normal(0, shot.noise / 2, size[::-1])[..., None]
    )
    return np.clip(image + grain, 0, 255).astype(np.uint8)


def shrink(mask, size):
    """The share of each block of fine pixels."""
    return cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)


def majority(labels, size):
    """The commonest label of each block of fine pixels."""
    best, result = np.zeros(size[::-1], np.float32), np.zeros(size[::-1], np.uint8)
    for number in np.unique(labels):
        share = shrink(labels == number, size)
        result[share > best] = number
        best = np.maximum(best, share)
    return result


# -------------------------------------------------------------------------------------- a scene


class Scene:
    """Surfaces and hairs in front of a camera, drawn once; `photograph` develops it."""

    def __init__(self, surfaces, strands, camera, shot):
        self.surfaces, self.strands, self.camera, self.shot = surfaces, strands, camera, shot
        starts = np.cumsum([0] + [len(s.points) for s in surfaces])
        shifted = [s.triangles + start for s, start in zip(surfaces, starts, strict=False)]
        self.owner = np.repeat(np.arange(len(surfaces)), [len(t) for t in shifted])
        self.triangles = np.concatenate(shifted)
        self.solid = ~np.array(["glass" in s.material for s in surfaces])[self.owner]
        self.points = np.concatenate([s.points for s in surfaces])
        self.key, self.fill = 2.6 * shot.contrast, 0.62 - 0.5 * shot.contrast
        shape = camera.height, camera.width
        self.xyw = camera.project(self.points)
        index, weights, self.nearest = rasterise(*self.xyw, self.triangles[self.solid], *shape)
        self.hits = []
        for s in strands:
            thick = np.minimum(1.0, s.width * camera.scale)
            self.hits.append(draw_hairs(*camera.project(s.lines), thick, self.nearest))
        self.shadows = Shadows(shot, self.points, self.triangles[self.solid], strands)
        seen = self.look_up(index, weights)
        light = self.shade(seen)
        image = backdrop(shot, shape[::-1], np.random.default_rng(shot.seed))
        labels = np.zeros(shape, np.uint8)
        image[seen.rows, seen.columns], labels[seen.rows, seen.columns] = light, seen.part
        for s, hit in zip(strands, self.hits, strict=True):
            self.shade_hairs(s, *hit, image, labels)
        self.image, self.labels, self.lens = image, labels, np.zeros(shape, bool)
        for number, s in enumerate(surfaces):
            if "glass" in s.material:
                self.put_glass(s, self.triangles[self.owner == number])

    def look_up(self, index, weights):
        """What is seen of the surfaces, a row for each fine pixel."""
        rows, columns = np.nonzero(index >= 0)
        index, weights = index[rows, columns], weights[rows, columns].astype(float)
        corner, owner = self.triangles[self.solid][index], self.owner[self.solid][index]
        every = lambda name: np.concatenate([getattr(s, name) for s in self.surfaces])
        blend = lambda table: np.einsum("nk,nkc->nc", weights, table[corner])
        each = lambda name: np.array([getattr(s, name) for s in self.surfaces])[owner]
        normals = [vertex_normals(s.points, s.triangles) for s in self.surfaces]
        seen = SimpleNamespace(
            rows=rows, columns=columns, place=blend(self.points), bumps=np.zeros(len(rows)),
            normal=unit(blend(np.concatenate(normals))), colour=blend(every("colour")),
            rest=blend(every("rest")), uv=blend(every("uv")), part=each("part"),
            gloss=each("gloss").astype(float), material=each("material"),
        )  # fmt: skip
        seen.shiny = np.zeros_like(seen.normal)
        seen.view = unit(np.array([0, 0, self.camera.distance]) - seen.place)
        seen.normal[(seen.normal * seen.view).sum(1) < 0] *= -1
        for number, s in enumerate(self.surfaces):
            mine = np.flatnonzero(owner == number)
            if s.look and len(mine):
                some = SimpleNamespace(**{k: v[mine] for k, v in vars(seen).items()})
                s.look(some)
                for name in ("colour", "gloss", "bumps", "part", "normal", "shiny", "material"):
                    getattr(seen, name)[mine] = getattr(some, name)
        if self.shot.metal:
            seen.colour[:], seen.material[:] = BRONZE, "metal"
        return seen

    def shade(self, seen):
        """The light (N, 3) that comes from what is seen."""
        shot, rows, columns, view = self.shot, seen.rows, seen.columns, seen.view
        field = np.zeros(self.nearest.shape, np.float32)
        field[rows, columns] = seen.bumps
        slope = [cv2.Sobel(field, cv2.CV_32F, a, 1 - a)[rows, columns] for a in (1, 0)]
        slope = np.clip(np.stack(slope, 1) * self.camera.scale / 8, -0.5, 0.5)
        bumpy = unit(seen.normal + np.pad(slope * [-1, 1], ((0, 0), (0, 1))))
        eye = seen.material == "eye"
        shiny = np.where(eye[:, None], seen.shiny, unit(0.65 * seen.normal + 0.35 * bumpy))
        depth = np.full(field.shape, -3.0, np.float32)
        depth[rows, columns] = seen.place[:, 2]
        open_ = openness(depth, self.camera.scale)[rows, columns]
        lit = self.shadows(seen.place + 0.01 * seen.normal, 5.0)
        facing = lit * np.clip(((bumpy @ shot.light) + 0.12) / 1.12, 0, 1)
        around = surroundings(bumpy * [1, 1, 0.6], shot, window=0) * shot.cool
        around = around + 0.35 * np.clip(bumpy[:, 2:], 0, 1)
        energy = self.key * facing[:, None] * shot.warm + self.fill * around * open_[:, None]
        edge = np.clip(1 - (bumpy * view).sum(1), 0, 1) ** 3 * np.clip(bumpy[:, 1] + 0.5, 0, 1)
        energy += shot.rim * edge[:, None] * shot.cool
        skin = seen.material == "skin"
        self.spread_below(energy, skin, rows, columns)
        spec = np.clip((shiny * unit(shot.light + view)).sum(1), 0, 1)
        cosine = (shiny * view).sum(1)
        fresnel = 0.04 + 0.96 * (1 - np.clip(cosine, 0, 1)) ** 5
        mirrored = surroundings(2 * cosine[:, None] * shiny - view, shot)
        light = seen.colour * energy * (0.35 + 0.65 * open_)[:, None]
        shine = 0.26 * seen.gloss * self.key * lit * (0.22 * spec**14 + 0.3 * spec**45)
        light += (
            shine[:, None] * shot.warm
            + (0.3 * seen.gloss * fresnel * open_)[:, None] * mirrored
        )
        dot = 0.003 * mirrored + (1.2 * self.key * spec**500 * lit)[:, None]
        wet = (0.9 * seen.colour * energy + dot) * (0.35 + 0.65 * open_)[:, None]
        patina = (0.55 + 0.45 * smoothstep(0.3, 0.9, open_))[:, None]
        flash = (1.5 * self.key * spec**30 * lit)[:, None]
        metal = 0.25 * energy + 0.85 * mirrored * (0.3 + 0.7 * lit[:, None]) + flash
        light = np.where(eye[:, None], wet, light)
        light = np.where(
            (seen.material == "metal")[:, None], patina * seen.colour * metal, light
        )
        face = seen.part == shot.meter[0]
        if face.any():  # the exposure follows the face, as a camera's does
            meter = shot.meter[1] / max(light[face].mean(), 1e-3)
            light, self.key, self.fill = light * meter, self.key * meter, self.fill * meter
        return light

    def spread_below(self, energy, skin, rows, columns):
        """Light spreads below the skin, red the farthest; in place."""
        rows, columns = rows[skin], columns[skin]
        for channel, reach in enumerate((0.05, 0.022, 0.012)):
            plane, mask = (np.zeros(self.nearest.shape, np.float32) for _ in range(2))
            plane[rows, columns], mask[rows, columns] = energy[skin, channel], 1
            sigma = max(0.4, reach * self.camera.scale)
            wide, share = (cv2.GaussianBlur(x, (0, 0), sigma) for x in (plane, mask))
            energy[skin, channel] = (wide / (share + 1e-4))[rows, columns]

    def shade_hairs(self, s, hair, along, image, labels):
        """Shades one set of hairs where they are seen, in place."""
        rows, columns = np.nonzero(hair >= 0)
        if not len(rows):
            return
        shot, number, t = self.shot, hair[rows, columns], along[rows, columns]
        k = np.minimum(t.astype(int), s.lines.shape[1] - 2)
        a, b = s.lines[number, k].astype(float), s.lines[number, k + 1].astype(float)
        place, tangent = a + (t - k)[:, None] * (b - a), unit(b - a)
        view = unit(np.array([0, 0, self.camera.distance]) - place)
        root = 0.65 + 0.45 * np.minimum(1, 1.5 * t / (s.lines.shape[1] - 1))
        colour, lit = s.colour[number] * root[:, None], self.shadows(place, 2.2)
        out = unit(place - shot.hair_middle)
        wrap = self.key * lit * np.clip(0.45 + 0.55 * (out @ shot.light), 0, 1)
        diffuse = wrap * np.sqrt(np.clip(1 - (tangent @ shot.light) ** 2, 0, 1))
        half = unit(shot.light + view)
        lobe = lambda shift: np.clip(1 - (unit(tangent + shift * out) * half).sum(1) ** 2, 0, 1)
        one, two = s.gloss * wrap * lobe(0.12) ** 60, s.gloss * wrap * lobe(-0.15) ** 18
        ambient = self.fill * surroundings(out, shot, window=0) * shot.cool
        light = colour * (0.85 * diffuse[:, None] * shot.warm + 0.75 * ambient)
        light += 0.07 * one[:, None] * shot.warm + 0.7 * colour * two[:, None]
        if shot.metal:
            glint = 0.9 * s.gloss * wrap * lobe(0.12) ** 20
            light = BRONZE * (0.5 * diffuse[:, None] + 0.45 * ambient + glint[:, None] + 0.05)
        image[rows, columns] = light
        if s.part:
            labels[rows, columns] = s.part

    def put_glass(self, s, triangles):
        """Lenses let through what is behind them, and mirror a little."""
        index, _, w = rasterise(*self.xyw, triangles, *self.nearest.shape)
        rows, columns = np.nonzero((index >= 0) & (w > self.nearest))
        dark = s.material == "dark glass"
        over = np.stack(
            [columns / self.camera.width, -rows / self.camera.height, 0.5 + 0 * rows], 1
        )
        glare = 0.012 * surroundings(unit(2 * over - [1, -1.2, 0]), self.shot)
        self.image[rows, columns] = self.image[rows, columns] * (0.06 if dark else 0.92) + glare
        self.lens[rows, columns] = True
        if dark:
            self.labels[rows, columns] = s.part

    def develop(self, size):
        """The photograph, the part of each pixel and the mask of clear glass."""
        image = develop(self.image, self.shot, size, np.random.default_rng(self.shot.seed))
        return image, majority(self.labels, size), shrink(self.lens, size) > 0.5
