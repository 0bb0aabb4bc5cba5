"""The parameters of the recipes that a library fits, without the training loop: `trees` and `svm`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

BOOSTING, FOREST = "gradient-boosting", "random-forest"

Task = Annotated[
    Literal["classes", "numbers"], Meta(description="what the target holds: classes, or numbers to come close to")
]
ClassWeights = Annotated[
    Literal["none", "balanced"], Meta(description="`balanced` lets rare classes weigh as much as frequent ones")
]
Categorical = Annotated[tuple[str, ...], Meta(description="columns of numbers that are categories; text always is")]


class TreesParams(Struct, frozen=True, kw_only=True):
    """Of decision trees, as scikit-learn grows them. What a method does not have is not looked at."""

    task: Task = "classes"
    method: Annotated[
        Literal["gradient-boosting", "random-forest"],
        Meta(description="trees that correct one another in rounds, or trees of random rows that vote"),
    ] = "gradient-boosting"
    rounds: Annotated[int, Meta(ge=1, le=100_000, description="of boosting; trees of a forest")] = 100
    lr: Annotated[float, Meta(ge=1e-6, le=1, description="of boosting: the share of each correction that is taken")] = (
        0.1
    )
    max_leaves: Annotated[
        int, Meta(ge=0, le=65_536, description="of a tree; 0: 31 in boosting, any number in a forest")
    ] = 0
    max_depth: Annotated[int, Meta(ge=0, le=10_000, description="of a tree, in levels; 0: any")] = 0
    min_leaf_rows: Annotated[
        int, Meta(ge=0, le=10_000_000, description="rows that a leaf holds at least; 0: 20 in boosting, 1 in a forest")
    ] = 0
    l2: Annotated[float, Meta(ge=0, le=1e6, description="of boosting: pulls what leaves say towards zero")] = 0.0
    columns: Annotated[
        float,
        Meta(ge=0, le=1, description="share of columns, each category by itself, that a cut chooses among; 0: all, in a forest "
             "of classes their square root"),
    ] = 0.0  # fmt: skip
    early_stopping_rounds: Annotated[
        int,
        Meta(ge=0, le=100_000, description="of boosting: stops after so many without a better metric; 0 never"),
    ] = 0
    class_weights: ClassWeights = "none"
    categorical: Categorical = ()


class SvmParams(Struct, frozen=True, kw_only=True):
    """Of a support vector machine, as scikit-learn fits it."""

    task: Task = "classes"
    kernel: Annotated[Literal["rbf", "linear", "poly"], Meta(description="how rows are likened to one another")] = "rbf"
    c: Annotated[
        float, Meta(ge=1e-6, le=1e6, description="what a row on the wrong side costs; smaller is smoother")
    ] = 1.0
    gamma: Annotated[
        float, Meta(ge=0, le=1e6, description="how near `rbf` and `poly` look; 0: 1 / (columns · their variance)")
    ] = 0.0
    degree: Annotated[int, Meta(ge=1, le=20, description="of `poly`")] = 3
    epsilon: Annotated[
        float, Meta(ge=0, le=1e6, description="of numbers: errors up to it cost nothing; in deviations when normalized")
    ] = 0.1
    class_weights: ClassWeights = "none"
    categorical: Categorical = ()
    normalize: Annotated[
        bool, Meta(description="numbers to mean 0 and deviation 1, as found in the training split")
    ] = True
