"""Build data sets: from their owners, from local copies, or from the synthetic source."""

import fcntl
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flsys_ray import tokenizer
from flsys_ray.data import synthetic, synthetic_texts
from flsys_ray.data.fetch import Progress, fetch
from flsys_ray.data.folders import cache_folder, data_folder
from flsys_ray.data.recipe import RECIPES, load_recipe, recipe_names
from flsys_ray.data.schema import DatasetInfo, TextsInfo, WindowsInfo, file_sha256, is_dataset
from flsys_ray.errors import DataInvalid, NotFound

SYNTHETIC = (synthetic.NAME, synthetic_texts.NAME)
_CONVERSION = ("windows", "resampling", "recipe", "schema", "texts")


def build(
    name: str,
    from_folder: Path | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
    min_texts: int | None = None,
) -> DatasetInfo:
    """Build a data set in canonical form.

    Args:
        name: of a recipe.
        from_folder: local copies to read: a folder with the owner's files, zipped or not, or with the recipe's file
            of samples; or its parent. Without it the owner's files are fetched, and kept in `<out>/<name>/owner`.
        out: the folder of data sets; the default is `data_folder()`.
        progress: told of the bytes that were fetched.
        min_texts: of a data set of texts, leave out users with fewer; the default is the recipe's.

    Raises:
        InvalidInput: `min_texts` for a data set that is not of texts.
        NotFound: there is no such recipe, or nothing that it can read.
        DataInvalid: what is there does not have the owner's form.
        TryLater: the owner's server did not deliver.
    """
    recipe = load_recipe(name)
    if recipe is None:
        raise NotFound(f"no recipe for {name!r}; there are recipes for {', '.join(recipe_names())}")
    target = (out or data_folder()) / name
    if from_folder is None:
        source = target / "owner"
        for download in recipe.downloads:
            fetch(download, source, progress)
    else:
        source = _source_in(from_folder, name)
    return recipe.convert(name, source, target, min_texts)


def synthesize(out: Path | None = None, plan: synthetic.Plan | None = None, name: str = synthetic.NAME) -> WindowsInfo:
    """Write synthetic windows into `<out>/<name>`. They say that they are synthetic wherever they are read."""
    return synthetic.write((out or data_folder()) / name, plan or synthetic.Plan(), name)


def synthesize_texts(
    out: Path | None = None, plan: synthetic_texts.Plan | None = None, name: str = synthetic_texts.NAME
) -> TextsInfo:
    """Write synthetic texts into `<out>/<name>`. They say that they are synthetic wherever they are read."""
    return synthetic_texts.write((out or data_folder()) / name, plan or synthetic_texts.Plan(), name)


def prepared_folder(name: str, folder: Path) -> Path:
    """Return the folder of a canonical data set, making it in the cache first where that needs no network.

    Raises:
        NotFound: there is neither the data set nor anything to make it from.
    """
    here = folder / name
    if is_dataset(here):
        return here
    if name == synthetic.NAME:
        windows = synthetic.Plan()
        key = _key(repr(windows), _code_sha256(Path(synthetic.__file__)))
        return _cached(f"{name}-{key}", lambda target: synthetic.write(target, windows))
    if name == synthetic_texts.NAME:
        texts = synthetic_texts.Plan()
        key = _key(repr(texts), _code_sha256(Path(synthetic_texts.__file__)))
        return _cached(f"{name}-{key}", lambda target: synthetic_texts.write(target, texts))
    recipe = load_recipe(name)
    if recipe is not None and (samples := here / recipe.samples_file).is_file():
        state = samples.stat()
        key = _key(str(samples.resolve()), state.st_size, state.st_mtime_ns, _code_sha256(RECIPES / name / "recipe.py"))
        return _cached(f"{name}-{key}", lambda target: recipe.convert(name, here, target))
    raise NotFound(_how_to_get(name, folder, has_recipe=recipe is not None))


def present_names(folder: Path) -> tuple[str, ...]:
    """Return the names of the data sets that `open_dataset` opens from a folder, without the synthetic ones."""
    found = {path.name for path in folder.glob("*") if is_dataset(path)}
    for name in recipe_names():
        recipe = load_recipe(name)
        if recipe is not None and (folder / name / recipe.samples_file).is_file():
            found.add(name)
    return tuple(sorted(found))


def _how_to_get(name: str, folder: Path, *, has_recipe: bool) -> str:
    there = ", ".join(present_names(folder)) or "none"
    if not has_recipe:
        known = ", ".join((*recipe_names(), *SYNTHETIC))
        return f"no data set {name!r}: the data folder (FLSYS_DATA) holds {there}; there are recipes for {known}"
    return (
        f"data set {name!r} is not here: the data folder (FLSYS_DATA) holds {there}. Build it with "
        f"`flsys data build {name}` from its owner or `flsys data build {name} --from FOLDER` from local copies, or "
        f"use `{synthetic.NAME}` or `{synthetic_texts.NAME}`, which need no file"
    )


def _source_in(given: Path, name: str) -> Path:
    if not given.exists():
        raise NotFound(f"{name}: the folder given with --from does not exist")
    inner = given / name
    return inner if inner.is_dir() else given


def _code_sha256(source: Path) -> str:
    """Return a checksum of the code that makes a data set: changed code must not meet its old windows."""
    files = (source, Path(tokenizer.__file__), *(Path(__file__).with_name(f"{module}.py") for module in _CONVERSION))
    return _key(*(file_sha256(file) for file in files))


def _key(*parts: str | int) -> str:
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()[:16]


def _cached(entry: str, make: Callable[[Path], object]) -> Path:
    """Return a folder of the cache, made by `make` unless it is there; other processes wait meanwhile."""
    target = cache_folder() / "datasets" / entry
    if is_dataset(target):
        return target
    try:
        target.mkdir(parents=True, exist_ok=True)
        with _alone(target / ".lock"):
            if not is_dataset(target):
                make(target)
    except OSError as problem:
        reason = problem.strerror or type(problem).__name__
        raise DataInvalid(f"{entry}: the cache cannot be written ({reason}); set XDG_CACHE_HOME") from problem
    return target


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # goes with the process, however it ends
        yield
