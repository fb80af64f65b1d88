"""Models that tell the forces on their bodies.

MuJoCo computes the external forces on bodies (`cfrc_ext`) in a step only if a sensor asks for such
forces. It then does so at the beginning of every substep, so that after a control step they are
those at the beginning of its last substep. Gymnasium has them computed once more, after the step.
Where one substep evaluates the dynamics four times (Runge-Kutta, as for ants and humanoids), that
mixes positions and contacts of the last evaluation with the state after the step, and cannot be had
from simulations that are stepped together.
"""

from __future__ import annotations

from functools import cache
from xml.etree import ElementTree

from metarl.envs.physics import Model, load_model

_NAME = "metarl_force"


@cache
def with_contact_forces(model: Model) -> Model:
    """The same model with a force sensor on its first body, for whose sake `cfrc_ext` is filled.

    Site and sensor are added to the text of the model, whose other numbers stay as they are to the
    last bit; the site has no mass and touches nothing.
    """
    root = ElementTree.fromstring(model.xml)
    body = root.find("worldbody/body")
    assert body is not None
    ElementTree.SubElement(body, "site", name=_NAME)
    ElementTree.SubElement(ElementTree.SubElement(root, "sensor"), "force", site=_NAME)
    text = ElementTree.tostring(root, encoding="unicode")
    return load_model(f"<{model.path} with forces>", xml=text)
