"""What lmms-eval finds by the entry point: the name of the model, and where its classes are."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> "ModelManifest":
    """`--model videonsa`; with `--force_simple` for tasks that weigh options."""
    from lmms_eval.models.registry_v2 import ModelManifest

    where = "videonsa.evals.field.lmms_model"
    return ModelManifest(
        model_id="videonsa",
        chat_class_path=f"{where}.VideoNSAChat",
        simple_class_path=f"{where}.VideoNSASimple",
    )
