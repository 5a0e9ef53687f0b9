"""ROS parameters from the configuration's classes: declared once, with descriptions and ranges, for YAML and rqt."""

from __future__ import annotations

import array
import ast
import inspect
import textwrap
import types
from collections.abc import Container, Iterable, Sequence
from itertools import pairwise
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin

import annotated_types
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.parameter import Parameter

from nncontrol_prune.config import ConfigError, is_model, validated
from nncontrol_prune.controllers.specs import Spec
from nncontrol_prune.ros.callbacks import guard_services
from nncontrol_prune.ros.parameter_files import unaddressed_keys

Model = TypeVar("Model", bound=Spec)
UNION = (Union, types.UnionType)
BUILT_IN = ("use_sim_time", "start_type_description_service", "qos_overrides.")
"""Parameters that rclpy declares by itself."""


class Key:
    """One parameter: a field of the configuration, or of a part of it.

    Attributes:
        name: Its name, with dots between the parts.
        kind: `bool`, `int`, `float`, `str`, or `list[float]`.
        default: What it is if nothing is said; None for what stands for None, or for nothing.
        none: The value that stands for None, which leaves the choice to us; None if the field always has a value.
    """

    def __init__(self, name: str, annotation: Any, metadata: Sequence[Any], default: Any, description: str) -> None:
        self.name = name
        bounds = [*metadata]
        optional = False
        choices: tuple[Any, ...] = ()
        while True:
            if hasattr(annotation, "__metadata__"):
                bounds += annotation.__metadata__
                annotation = annotation.__origin__
            elif get_origin(annotation) in UNION:
                optional = True
                (annotation,) = [part for part in get_args(annotation) if part is not type(None)]
            elif get_origin(annotation) is Literal:
                choices, annotation = get_args(annotation), str
            else:
                break
        self.kind: type | str = "list[float]" if get_origin(annotation) is tuple else annotation
        self.lower, self.upper, exclusive, below = _limits(bounds)
        self.none: float | None = None
        notes = [f"one of {', '.join(choices)}"] if choices else []
        if optional:
            # A slider needs a number for it: the end of the range if that is not allowed, and else one below it.
            self.none = self.to_ros(0 if exclusive or self.lower is None else int(self.lower) - 1)
            self.lower = float(self.none)
            notes.append(f"{self.none:g}: chosen automatically")
        elif exclusive and self.lower is not None:
            notes.append(f"greater than {self.lower:g}")
        elif self.lower is not None and self.upper is None:
            notes.append(f"at least {self.lower:g}")
        if below:
            notes.append(f"less than {self.upper:g}")
        self.default = self.none if default is None else self.to_ros(default)
        self.description, self.constraints = description, "; ".join(notes)

    def descriptor(self, *, fixed: bool, dynamic_typing: bool) -> ParameterDescriptor:
        """Describe it to those who set it.

        Args:
            fixed: Whether it can be set only when the node is started.
            dynamic_typing: Whether rclpy leaves it to us which types are taken.
        """
        notes = [self.constraints] if self.constraints else []
        notes += ["can be set only when the node is started"] if fixed else []
        descriptor = ParameterDescriptor(
            name=self.name, description=self.description, additional_constraints="; ".join(notes), read_only=fixed
        )
        bounded = self.lower is not None and self.upper is not None
        if self.kind is float:
            descriptor.dynamic_typing = dynamic_typing  # otherwise rclpy refuses 100 for 100.0
            if bounded:
                descriptor.floating_point_range = [FloatingPointRange(from_value=self.lower, to_value=self.upper)]
        elif self.kind is int and bounded:
            descriptor.integer_range = [IntegerRange(from_value=int(self.lower or 0), to_value=int(self.upper or 0))]
        return descriptor

    def to_ros(self, value: Any) -> Any:
        """Convert a value for a parameter; one that does not fit is left for the validation to refuse."""
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if self.kind == "list[float]" and isinstance(value, (list, tuple, array.array)):
            return [float(entry) if isinstance(entry, int) else entry for entry in value]
        return value

    def parameter(self, value: Any) -> Parameter:
        """Return a parameter with a value, converted; a list's type is told even where the list is empty."""
        value = self.to_ros(value)
        return Parameter(self.name, Parameter.Type.DOUBLE_ARRAY if value == [] else None, value)

    def to_config(self, value: Any) -> Any:
        """Convert a parameter's value for the configuration."""
        if self.none is not None and value == self.none:
            return None
        return tuple(value) if isinstance(value, list) else value


def keys_of(model: type[Spec], prefix: str = "") -> list[Key]:
    """Return the parameters that a configuration's class stands for, but for those below names not known before."""
    keys = []
    descriptions = field_descriptions(model)
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, Spec):
            keys += keys_of(type(default), f"{prefix}{name}.")
        elif not is_open(field.annotation):
            keys.append(Key(f"{prefix}{name}", field.annotation, field.metadata, default, descriptions.get(name, "")))
    return keys


def is_open(annotation: Any) -> bool:
    """Return whether a field is a dictionary, or a part of the configuration that need not be there.

    What stands below it is then no parameter before somebody gives it, in a parameter file.
    """
    return any(get_origin(part) is dict or is_model(part) for part in (annotation, *get_args(annotation)))


def field_descriptions(model: type[Spec]) -> dict[str, str]:
    """Return what stands below each field of a class and of those it inherits from."""
    found: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if not issubclass(owner, Spec) or owner is Spec:
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in pairwise(body.body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            ):
                found[field.target.id] = " ".join(str(text.value.value).split())
    return found


class ParameterNode(Node):
    """A node that may be given empty lists, as `ros2 param dump` writes them: they are as if they were left out.

    Whatever is asked of the services that every node has, it goes on.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        guard_services(self)

    def declare_parameters(
        self, namespace: str, parameters: Sequence[tuple[Any, ...]], ignore_override: bool = False
    ) -> list[Parameter]:
        """Declare parameters, but for those without a value: rclpy's parser makes that of empty lists."""
        given = [entry for entry in parameters if entry[1:2] != (None,)]
        return list(super().declare_parameters(namespace, given, ignore_override))


class NodeParameters(Generic[Model]):
    """The parameters of one node.

    Args:
        node: The node, made with `automatically_declare_parameters_from_overrides`.
        model: The configuration's class.
        fixed: Parameters that can be set only when the node is started; rclpy refuses to set them later.

    Raises:
        ConfigError: A parameter that was given does not exist, or its value is not allowed.
    """

    def __init__(self, node: Node, model: type[Model], fixed: Container[str] = ()) -> None:
        self._node = node
        self._model = model
        self._fixed = fixed
        self._where = node.get_name()
        self._keys = {key.name: key for key in keys_of(model)}
        self._open = [name for name, field in model.model_fields.items() if is_open(field.annotation)]
        given = {
            name: parameter.value
            for name, parameter in node.get_parameters_by_prefix("").items()
            if not name.startswith(BUILT_IN)
        }
        for name in given:
            node.undeclare_parameter(name)
        foreign = unaddressed_keys(node.get_name())
        own = {name: value for name, value in given.items() if self._known(name) or name not in foreign}
        self._values = {name: key.default for name, key in self._keys.items()}
        self._values.update({name: self._to_ros(name, value) for name, value in own.items()})
        self.config: Model = self._validated(self._values)
        """What the parameters say now."""
        self._declare()

    def changed(self, parameters: Iterable[Parameter]) -> Model:
        """Return the configuration as it would be with some parameters changed.

        Raises:
            ConfigError: A value is not allowed.
        """
        return self._validated({**self._values, **self._own(parameters)})

    def accept(self, parameters: Iterable[Parameter]) -> None:
        """Take over parameters that were changed.

        Raises:
            ConfigError: A value is not allowed; then none is taken over.
        """
        self.config = self.changed(parameters)
        self._values.update(self._own(parameters))

    def names(self, parameters: Iterable[Parameter]) -> set[str]:
        """Return which of the node's own parameters would get another value."""
        return {name for name, value in self._own(parameters).items() if value != self._values.get(name)}

    def set(self, name: str, value: Any) -> None:
        """Set a parameter from within the node, so that it shows what is."""
        if self._values.get(name) != value:
            self._node.set_parameters([Parameter(name, value=value)])

    def _own(self, parameters: Iterable[Parameter]) -> dict[str, Any]:
        return {
            parameter.name: self._to_ros(parameter.name, parameter.value)
            for parameter in parameters
            if self._known(parameter.name)
        }

    def _known(self, name: str) -> bool:
        return name in self._keys or name.partition(".")[0] in self._open

    def _to_ros(self, name: str, value: Any) -> Any:
        if name in self._keys:
            return self._keys[name].to_ros(value)
        return value.tolist() if isinstance(value, array.array) else value

    def _validated(self, values: dict[str, Any]) -> Model:
        nested: dict[str, Any] = {}
        for name, value in values.items():
            key = self._keys.get(name)
            if value is None and (key is None or key.none is None):
                continue
            *parts, last = name.split(".")
            place = nested
            for part in parts:
                place = place.setdefault(part, {})
                if not isinstance(place, dict):
                    raise ConfigError(f"{self._where}: there is no key {name!r}")
            place[last] = value if key is None else key.to_config(value)
        return validated(self._model, nested, self._where)

    def _declare(self) -> None:
        convert = hasattr(self._node, "add_pre_set_parameters_callback")  # not on Humble
        for name, value in self._values.items():
            key = self._keys.get(name)
            descriptor = (
                ParameterDescriptor(name=name)
                if key is None
                else key.descriptor(fixed=name in self._fixed, dynamic_typing=not convert)
            )
            if key is not None and value == []:  # from which rclpy would not tell the type
                self._node.declare_parameter(name, Parameter.Type.DOUBLE_ARRAY, descriptor, ignore_override=True)
                self._node.set_parameters([key.parameter(value)])
            else:
                self._node.declare_parameter(name, value, descriptor, ignore_override=True)
        if convert:
            self._node.add_pre_set_parameters_callback(self._converted)

    def _converted(self, parameters: list[Parameter]) -> list[Parameter]:
        """Make floating-point numbers of whole ones where the parameter is one, before rclpy looks at the type."""
        return [
            self._keys[parameter.name].parameter(parameter.value)
            if parameter.name in self._keys and parameter.type_ is not Parameter.Type.NOT_SET
            else parameter
            for parameter in parameters
        ]


def _limits(metadata: Sequence[Any]) -> tuple[float | None, float | None, bool, bool]:
    """Return lower and upper limit, and of each whether it is itself not allowed.

    A range has no way to leave out its ends. They are round all the same, since sliders have steps of a hundredth of
    it; it is left to the validation to refuse them.
    """
    lower, upper, above, below = None, None, False, False
    for entry in metadata:
        for part in (entry, *getattr(entry, "metadata", ())):
            if isinstance(part, annotated_types.Ge):
                lower = float(part.ge)  # type: ignore[arg-type]
            elif isinstance(part, annotated_types.Gt):
                lower, above = float(part.gt), True  # type: ignore[arg-type]
            elif isinstance(part, annotated_types.Le):
                upper = float(part.le)  # type: ignore[arg-type]
            elif isinstance(part, annotated_types.Lt):
                upper, below = float(part.lt), True  # type: ignore[arg-type]
    return lower, upper, above, below
