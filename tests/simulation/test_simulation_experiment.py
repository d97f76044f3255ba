"""A simulation from Python: who trains, who judges, and that the same call gives the same bits."""

from dataclasses import replace

import keras
import numpy as np
import pytest

import flsys_ray
from flsys_ray.core.plan import Augmentation, parse_plan
from flsys_ray.data import synthetic
from flsys_ray.data.dataset import dataset_at
from flsys_ray.data.uniform import write_uniform
from flsys_ray.errors import DataInvalid, DataLeak, InvalidInput
from flsys_ray.simulation.engine import Terms
from flsys_ray.simulation.experiment import Experiment, Network, builtin_for, ended, fleet_for, prepare, run
from flsys_ray.simulation.population import Split

CLASSES = ("walking", "sitting")
PLAN = parse_plan({"pacing": {"cohort": 3}, "stopping": {"versions": 2}, "eligibility": {"min_examples": 1}})
USERS = tuple(f"user-{i}" for i in range(10))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "small"
    synthetic.write(folder, synthetic.Plan(users=8, minutes=4.0), "small")
    return dataset_at(folder)


def build() -> keras.Model:
    layers = [keras.Input((100, 3)), keras.layers.GlobalMaxPooling1D(), keras.layers.Dense(2, activation="softmax")]
    return keras.Sequential(layers)


@pytest.fixture(scope="module")
def network():
    program = flsys_ray.compile(build(), classes=list(CLASSES), batch_size=8, name="small").data
    return Network("small", program, build)


@pytest.mark.parametrize("trainer", ["fast", "program"])
def test_the_same_experiment_gives_the_same_bits_for_any_number_of_workers(data, network, trainer):
    outcomes = [run([Experiment(network, PLAN, data, trainer=trainer)], workers=workers) for workers in (1, 2)]
    assert outcomes[0].digests == outcomes[1].digests
    assert outcomes[0].rows == outcomes[1].rows
    assert outcomes[0].versions == {"small": 2}
    assert outcomes[0].parameters["small"].shape == (8,)
    assert "parameters" not in outcomes[0].summary()


def test_users_that_are_named_judge_and_the_others_train(data, network):
    chosen = data.select(CLASSES)
    held_out, training = chosen.users[1:3], chosen.users[3:6]
    models, specs = prepare(
        [
            Experiment(network, PLAN, data, held_out=held_out, name="all others"),
            Experiment(network, PLAN, data, held_out=held_out, training=training, held_out_part=0, name="three"),
        ]
    )
    others, three = (model.population.pool for model in models)
    assert others.users == tuple(user for user in chosen.users if user not in held_out)
    assert three.users == training
    for pool in (others, three):
        assert np.array_equal(pool.held_out.x, np.concatenate([chosen.examples(user).x for user in held_out]))
    assert np.array_equal(three.training.x, np.concatenate([chosen.examples(user).x for user in training]))
    assert len(others.training.y) < sum(chosen.count(user) for user in others.users)
    assert specs["three"].held_out is three.held_out
    assert len(fleet_for(models, 0)) == len(others.users)


def test_a_fifth_is_held_out_by_the_seed_of_the_plan(data, network):
    def judged(seed):
        return set(Split.of(USERS, seed).held_out)

    assert len(judged(0)) == 2
    assert judged(0) == judged(0)
    assert len({frozenset(judged(seed)) for seed in range(6)}) > 1
    split = Split.of(USERS, 0, training=USERS[:4])
    assert split.training == USERS[:4]
    assert set(split.held_out) < set(USERS[4:])


@pytest.mark.parametrize(
    ("held_out", "training", "match"),
    [
        (["nobody"], None, "no users nobody"),
        (USERS[:2], USERS[1:3], "once"),
        (USERS, None, "one of each"),
        ([], None, "one of each"),
        ([USERS[0], USERS[0]], None, "once"),
    ],
)
def test_a_split_that_is_none_is_refused(held_out, training, match):
    with pytest.raises(DataInvalid, match=match):
        Split.of(USERS, 0, held_out=held_out, training=training)


def test_two_models_of_one_name_and_a_plan_without_end_are_refused(data, network):
    one = Experiment(network, PLAN, data)
    with pytest.raises(InvalidInput, match="each name once"):
        prepare([one, one])
    with pytest.raises(InvalidInput, match="no end"):
        run([Experiment(network, parse_plan({}), data)])


def test_an_end_and_a_seed_are_set_and_all_else_stays():
    plan = ended(PLAN, 7, 5)
    assert (plan.stopping.versions, plan.seed, plan.pacing) == (7, 5, PLAN.pacing)
    assert ended(PLAN, None, None) == PLAN


def test_the_built_in_model_of_windows_is_found(data):
    assert builtin_for(data) == "har-wild"


def test_terms_default_to_the_seed_of_the_plan(data, network):
    one = Experiment(network, PLAN.model_copy(update={"seed": 4}), data, trainer="program")
    assert run([one]).digests == run([one], terms=Terms(seed=4)).digests


# Label skew and the shared set ---------------------------------------------------------------------------------------


def test_each_device_keeps_some_of_its_users_classes(data, network):
    (model,), _ = prepare([Experiment(network, PLAN, data, devices=40, classes_per_device=1, examples_per_device=6)])
    population, y = model.population, model.population.pool.training.y
    whole = replace(population, classes_per_device=None)
    for device in range(40):
        assert set(y[population.rows(device)]) == set(population.classes(device))
        assert len(population.classes(device)) == 1
        assert len(population.rows(device)) == population.count(device) <= 6
        assert set(population.classes(device)) <= set(whole.classes(device))
        assert set(y[whole.rows(device)]) <= set(whole.classes(device))
    assert {label for device in range(40) for label in population.classes(device)} == {0, 1}
    two = replace(population, classes_per_device=2, examples_per_device=None)
    whole = replace(whole, examples_per_device=None)
    assert all(two.rows(device).tolist() == whole.rows(device).tolist() for device in range(40))


def test_a_shared_set_is_drawn_from_training_users_evenly_and_nobody_loses_an_example(data, network):
    share = PLAN.model_copy(update={"augmentation": Augmentation(share=0.5)})
    (model, plain), _ = prepare(
        [Experiment(network, share, data, shared_part=0.1, name="a"), Experiment(network, PLAN, data, name="b")]
    )
    pool = model.population.pool
    assert pool.held_out.x.tobytes() == plain.population.pool.held_out.x.tobytes()
    own = int(pool.offsets[-1])
    assert pool.training.x[:own].tobytes() == plain.population.pool.training.x.tobytes()
    total = sum(data.select(CLASSES).count(user) for user in pool.users)
    assert np.bincount(pool.training.y[own:]).tolist() == [round(0.05 * total)] * 2
    held_out = {x.tobytes() for x in pool.held_out.x}
    assert not [x for x in pool.training.x[own:] if x.tobytes() in held_out]
    portions = [model.population.portion(device, 0.5, 0) for device in range(model.population.devices)]
    assert all(len(rows) == round(0.5 * pool.shared) and rows.min() >= own for rows in portions)
    assert len({tuple(rows) for rows in portions}) == len(portions)


def test_a_data_set_of_its_own_is_the_shared_set_if_it_is_even_and_judges_nobody(data, network, tmp_path):
    share = PLAN.model_copy(update={"augmentation": Augmentation(share=1.0)})
    chosen = data.select(CLASSES)
    held_out, training = chosen.users[:2], chosen.users[2:]
    write_uniform(tmp_path / "even", chosen, training, 5)
    even = dataset_at(tmp_path / "even")
    given = Experiment(network, share, data, held_out=held_out, shared=even, trainer="program")
    assert given.model().population.pool.shared == 10
    assert run([given]).versions == {"small": 2}
    with pytest.raises(DataLeak, match="the shared set"):
        Experiment(network, share, data, held_out=training[:3], shared=even).model()
    with pytest.raises(DataInvalid, match="as many examples of each class"):
        Experiment(network, share, data, held_out=held_out, shared=data).model()
    with pytest.raises(InvalidInput, match="not both"):
        Experiment(network, share, data, shared=even, shared_part=0.1).model()
    with pytest.raises(InvalidInput, match="shared_part"):
        Experiment(network, share, data, shared_part=-0.1).model()
