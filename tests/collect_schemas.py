"""Collects JSON schemas as programs really send them, and writes fixtures/real_schemas.jsonl.

    python -m venv /tmp/a && /tmp/a/bin/pip install 'pydantic[email]' pydantic-extra-types openai anthropic \\
        groq ollama mcp fastmcp fastapi langchain-core openai-agents pydantic-ai-slim google-genai \\
        geojson-pydantic openapi-pydantic agent-client-protocol jsonschema check-jsonschema nbformat pyhf \\
        cyclonedx-python-lib openapi-spec-validator kubernetes-validate mcp-server-git mcp-server-fetch \\
        mcp-server-time awslabs-aws-documentation-mcp-server duckduckgo-mcp-server excel-mcp-server \\
        wikipedia-mcp
    python -m venv /tmp/b && /tmp/b/bin/pip install arxiv-mcp-server redis-mcp-server mcp-text-editor \\
        office-word-mcp-server mcp-shell-server
    PATH=/tmp/a/bin:/tmp/b/bin:$PATH python tests/collect_schemas.py > tests/fixtures/real_schemas.jsonl

The second environment is for servers that need mcp 1.  What is not installed is passed over, and named on
stderr.  A line is {"name", "source", "schema"}.  The schemas are

- what pydantic 2 makes of the models below and of models in packages, and pydantic 1 of a few;
- what openai, anthropic, langchain, openai-agents and pydantic-ai make of models and functions;
- the input and output schemas of MCP servers, and of functions below under FastMCP;
- what zod 4 (z.toJSONSchema) and zod 3 (zod-to-json-schema) write, by hand;
- drafts 4, 6, 7, 2019-09 and 2020-12 and OpenAPI by hand, and files in packages.

Each is a valid schema under the draft that it names, or else 2020-12; no two are the same but for names and
notes.
"""
import contextlib
import dataclasses
import datetime
import decimal
import enum
import importlib
import importlib.metadata
import ipaddress
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import typing
import uuid
import warnings
from typing import Annotated, Any, Literal, Optional, Union

import jsonschema
import pydantic
import pydantic.alias_generators
import typing_extensions
from pydantic import BaseModel, ConfigDict, Field

warnings.simplefilter('ignore')


# ---- models as in the documentation of pydantic, and as people write them for extraction ----

PYDANTIC = []


def model(cls):
    """Puts a model, or a type by that name, into the list."""
    PYDANTIC.append((cls.__name__, cls, 'validation'))
    return cls


class Currency(str, enum.Enum):
    eur = 'EUR'
    usd = 'USD'
    gbp = 'GBP'


class Priority(enum.IntEnum):
    low = 1
    normal = 5
    high = 10


class Mixed(enum.Enum):
    number = 1
    half = 0.5
    text = 'one'
    nothing = None
    yes = True


class Only(enum.Enum):
    one = 'the only value'


@model
class Person(BaseModel):
    """A person, with what is optional in each of the usual ways."""
    name: str = Field(min_length=1, max_length=80, description='The full name, as written')
    age: int = Field(ge=0, le=150)
    nickname: Optional[str] = None
    email: Optional[pydantic.EmailStr] = Field(default=None, examples=['ada@example.org'])
    height_m: Optional[Annotated[float, Field(gt=0.3, lt=2.8)]] = None
    languages: list[str] = []
    is_member: bool = False


class Line(BaseModel):
    description: str
    quantity: Annotated[int, Field(ge=1, le=9999)]
    unit_price: Annotated[decimal.Decimal, Field(ge=0, max_digits=10, decimal_places=2)]
    tax_rate: Literal[0, 7, 19] = 19


@model
class Invoice(BaseModel):
    number: Annotated[str, Field(pattern=r'^[A-Z]{2}-\d{4}-\d{1,6}$')]
    issued: datetime.date
    due: Optional[datetime.date] = None
    currency: Currency = Currency.eur
    lines: Annotated[list[Line], Field(min_length=1, max_length=20)]
    notes: Annotated[str, Field(max_length=500)] = ''


class BlackCat(BaseModel):
    pet_type: Literal['cat']
    color: Literal['black']
    black_name: str


class WhiteCat(BaseModel):
    pet_type: Literal['cat']
    color: Literal['white']
    white_name: str


Cat = Annotated[Union[BlackCat, WhiteCat], Field(discriminator='color')]


class Dog(BaseModel):
    pet_type: Literal['dog']
    name: str
    barks: float


class Lizard(BaseModel):
    pet_type: Literal['reptile', 'lizard']
    scales: bool


@model
class Owner(BaseModel):
    pet: Union[Cat, Dog, Lizard] = Field(discriminator='pet_type')
    n: int


@model
class Comment(BaseModel):
    author: str
    text: Annotated[str, Field(min_length=1)]
    replies: list['Comment'] = Field(default_factory=list, max_length=3)


@model
class ListNode(BaseModel):
    value: int
    next: Optional['ListNode'] = None


class Constant(BaseModel):
    kind: Literal['constant'] = 'constant'
    value: float


class Variable(BaseModel):
    kind: Literal['variable'] = 'variable'
    name: Annotated[str, Field(pattern='^[a-z][a-z0-9_]*$')]


class Binary(BaseModel):
    kind: Literal['binary'] = 'binary'
    operator: Literal['+', '-', '*', '/', '**']
    left: 'Expression'
    right: 'Expression'


class Call(BaseModel):
    kind: Literal['call'] = 'call'
    function: Literal['sin', 'cos', 'exp', 'log']
    arguments: Annotated[list['Expression'], Field(min_length=1, max_length=2)]


Expression = Annotated[Union[Constant, Variable, Binary, Call], Field(discriminator='kind')]


@model
class Formula(BaseModel):
    formula: Expression
    latex: Optional[str] = None


@model
class Account(BaseModel):
    """The strings that have formats of their own."""
    user: Annotated[str, Field(min_length=3, max_length=20, pattern='^[a-zA-Z0-9_]+$')]
    password: pydantic.SecretStr = Field(min_length=8)
    email: pydantic.EmailStr
    recovery: list[pydantic.EmailStr] = Field(default=[], max_length=2)
    homepage: Optional[pydantic.HttpUrl] = None
    avatar: Optional[pydantic.AnyUrl] = None
    id: uuid.UUID


@model
class Appointment(BaseModel):
    day: datetime.date
    begins: datetime.time
    at: datetime.datetime
    lasts: datetime.timedelta
    created: pydantic.AwareDatetime
    reminders: list[datetime.timedelta] = []


@model
class Interface(BaseModel):
    address: ipaddress.IPv4Address
    address6: Optional[ipaddress.IPv6Address] = None
    gateway: Optional[Union[ipaddress.IPv4Address, ipaddress.IPv6Address]] = None
    network: ipaddress.IPv4Network
    any_address: Optional[pydantic.IPvAnyAddress] = None
    mtu: Annotated[int, Field(ge=68, le=65535)] = 1500


@model
class Upload(BaseModel):
    path: pathlib.Path
    raw: bytes
    encoded: pydantic.Base64Bytes
    size: pydantic.ByteSize
    checksum: Annotated[str, Field(pattern='^[0-9a-f]{64}$')]
    pattern: Optional[re.Pattern] = None


@model
class Dictionaries(BaseModel):
    counts: dict[str, int]
    prices: dict[Annotated[str, Field(pattern='^[A-Z]{3}$')], float] = {}
    short_names: dict[Annotated[str, Field(max_length=4)], bool] = {}
    by_currency: dict[Currency, Annotated[float, Field(ge=0)]] = {}
    by_number: dict[int, str] = {}
    by_id: dict[uuid.UUID, list[int]] = {}
    few: Annotated[dict[str, str], Field(min_length=1, max_length=3)] = {'a': 'b'}
    nested: dict[str, dict[str, Optional[float]]] = {}


@model
class Collections(BaseModel):
    tags: set[str]
    primes: frozenset[int] = frozenset()
    levels: set[Priority] = set()
    pair: tuple[int, str]
    numbers: tuple[float, ...] = ()
    three: Annotated[list[bool], Field(min_length=3, max_length=3)] = [True, False, True]
    matrix: list[Annotated[list[float], Field(min_length=2, max_length=2)]] = []
    sequence: typing.Sequence[int] = []


@model
class Anything(BaseModel):
    whatever: Any
    thing: object = None
    json_value: pydantic.JsonValue = None
    mapping: dict[str, Any] = {}
    items: list = []


@model
class Choices(BaseModel):
    one: Literal['only']
    some: Literal['a', 'b', 'c']
    mixed: Literal['x', 1, True, None]
    number: Literal[1, 2, 3] = 1
    priority: Priority = Priority.normal
    kind: Mixed
    only: Only
    flag: Literal[False] = False


@model
class Numbers(BaseModel):
    positive: pydantic.PositiveInt
    negative: pydantic.NegativeFloat
    zero_or_more: pydantic.NonNegativeInt
    zero_or_less: pydantic.NonPositiveFloat
    dozen: Annotated[int, Field(multiple_of=12, ge=0, le=144)]
    quarter: Annotated[float, Field(multiple_of=0.25, ge=-2, le=2)]
    ratio: Annotated[float, Field(ge=0, le=1)]
    open_ratio: Annotated[float, Field(gt=0, lt=1)]
    int64: Annotated[int, Field(ge=-2**63, le=2**63 - 1)]
    uint64: Annotated[int, Field(ge=0, lt=2**64)]
    byte: Annotated[int, Field(ge=0, le=255)]
    tiny: Annotated[float, Field(gt=1e-9, le=1e-6)]
    celsius: Annotated[float, Field(ge=-273.15)]
    any_float: float
    any_int: int


@model
class Money(BaseModel):
    amount: decimal.Decimal
    limited: Annotated[decimal.Decimal, Field(gt=0, le=1000000, decimal_places=2)]
    rate: Optional[decimal.Decimal] = None


@model
class Closed(BaseModel):
    model_config = ConfigDict(extra='forbid')
    a: int
    b: Optional[str] = None


@model
class Open(BaseModel):
    model_config = ConfigDict(extra='allow')
    a: int
    b: list[int] = []


@model
class OpenTyped(BaseModel):
    model_config = ConfigDict(extra='allow')
    __pydantic_extra__: dict[str, int]
    name: str


@model
class CamelCase(BaseModel):
    model_config = ConfigDict(alias_generator=pydantic.alias_generators.to_camel, populate_by_name=True,
                              json_schema_extra={'x-origin': 'internal',
                                                 'examples': [{'orderId': 1, 'shippedAt': None}]})
    order_id: int = Field(ge=1)
    shipped_at: Optional[datetime.datetime] = None
    customer_reference_number: Optional[str] = Field(default=None, json_schema_extra={'x-pii': True})


@model
class Aliases(BaseModel):
    type_: str = Field(alias='@type')
    ref: str = Field(alias='$ref')
    size: int = Field(alias='größe')
    two: bool = Field(alias='two words')
    quoted: str = Field(default='', alias='say "hi"\\')
    dotted: float = Field(default=0, alias='a.b/c~d')
    empty: Optional[int] = Field(default=None, alias='')


@model
class Deprecated(BaseModel):
    old: Annotated[Optional[int], Field(deprecated=True)] = None
    older: Annotated[str, Field(deprecated='Say `new` instead.', title='An older one')] = 'x'
    new: int = Field(description='What `old` was', examples=[1, 2], repr=False)


class Box(BaseModel):
    """A serialized model has computed fields, which are read only, and the types of its serializers."""
    width: float = Field(gt=0)
    height: float = Field(gt=0)
    made: datetime.datetime
    cost: decimal.Decimal = decimal.Decimal('1.50')

    @pydantic.computed_field
    @property
    def area(self) -> float:
        return self.width * self.height

    @pydantic.field_serializer('made')
    def made_as_number(self, made) -> int:
        return int(made.timestamp())


PYDANTIC.append(('Box (serialized)', Box, 'serialization'))


@model
class WithJson(BaseModel):
    numbers: pydantic.Json[list[int]]
    whatever: pydantic.Json


T = typing.TypeVar('T')


class Page(BaseModel, typing.Generic[T]):
    items: list[T]
    total: int = Field(ge=0)
    next_cursor: Optional[str] = None


PYDANTIC.append(('Page[Person]', Page[Person], 'validation'))


class Tags(pydantic.RootModel[list[Annotated[str, Field(min_length=2, max_length=12)]]]):
    pass


class Ages(pydantic.RootModel[dict[str, Annotated[int, Field(ge=0, lt=200)]]]):
    pass


PYDANTIC += [('Tags', Tags, 'validation'), ('Ages', Ages, 'validation')]


@dataclasses.dataclass
class Point:
    x: float
    y: float
    label: Optional[str] = None


class Movie(typing_extensions.TypedDict, total=False):
    title: typing.Required[str]
    year: typing.Required[Annotated[int, Field(ge=1888, le=2100)]]
    rating: Annotated[float, Field(ge=0, le=10, multiple_of=0.5)]
    cast: list[str]


class Route(typing.NamedTuple):
    start: str
    end: str
    km: float = 0.0


PYDANTIC += [
    ('Point (dataclass)', Point, 'validation'),
    ('Movie (TypedDict)', Movie, 'validation'),
    ('Route (NamedTuple)', Route, 'validation'),
    ('list of points or one', Union[Point, Annotated[list[Point], Field(max_length=4)]], 'validation'),
    ('int, float, str or None', Union[int, float, str, None], 'validation'),
    ('optional email', Optional[pydantic.EmailStr], 'validation'),
    ('date or datetime', Union[datetime.date, datetime.datetime], 'validation'),
]


@model
class Shapes(BaseModel):
    """Unions without a discriminator, of models that resemble each other."""
    shape: Union[Point, Route, Movie, Tags]
    numbers: Union[int, list[int], dict[str, int]]
    limited: Union[Annotated[int, Field(ge=10)], Annotated[str, Field(max_length=3)], None] = None


def pet_of(value):
    return value.get('kind') if isinstance(value, dict) else getattr(value, 'kind', None)


@model
class Tagged(BaseModel):
    item: Annotated[Union[Annotated[Constant, pydantic.Tag('constant')],
                          Annotated[Variable, pydantic.Tag('variable')]], pydantic.Discriminator(pet_of)]


@model
class Codes(BaseModel):
    """Patterns as people write them."""
    iban: Annotated[str, Field(pattern=r'^[A-Z]{2}\d{2}[A-Z0-9]{11,30}$')]
    semver: Annotated[str, Field(pattern=r'^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(?:-[0-9A-Za-z.-]+)?$')]
    color: Annotated[str, Field(pattern='^#(?:[0-9a-fA-F]{3}){1,2}$')]
    isbn: Annotated[str, Field(pattern=r'^(?:97[89]-)?\d{1,5}-\d{1,7}-\d{1,7}-[\dX]$')]
    phone: Annotated[str, Field(pattern=r'^\+?[0-9 ()/-]{6,20}$')]
    plate: Annotated[str, Field(pattern='^[A-ZÄÖÜ]{1,3}-[A-Z]{1,2} [1-9][0-9]{0,3}[EH]?$')]
    slug: Annotated[str, Field(pattern='^[a-z0-9]+(?:-[a-z0-9]+)*$', max_length=40)]
    words: Annotated[str, Field(pattern=r'^\S+( \S+){1,4}$')]
    contains: Annotated[str, Field(pattern=r'\btodo\b')]
    postcode: Annotated[str, Field(pattern=r'^\d{5}$', min_length=5, max_length=5)]
    base: Annotated[str, Field(pattern=r'^s3://[^/]+/.+$')]
    either: Annotated[str, Field(pattern='^(yes|no|maybe)$')]
    time: Annotated[str, Field(pattern='^([01]?[0-9]|2[0-3]):[0-5][0-9]$')]
    quoted: Annotated[str, Field(pattern=r'^"[^"\\]*"$')]
    not_empty: Annotated[str, Field(pattern=r'\S')]


@model
class Connections(BaseModel):
    postgres: pydantic.PostgresDsn
    redis: Optional[pydantic.RedisDsn] = None
    file: Optional[pydantic.FileUrl] = None
    web: Optional[pydantic.WebsocketUrl] = None
    contact: Optional[pydantic.NameEmail] = None


@model
class Defaults(BaseModel):
    point: Point = Point(1, 2)
    person: Optional[Person] = None
    line: Line = Line(description='x', quantity=1, unit_price=decimal.Decimal('9.99'))
    mapping: dict[str, list[int]] = {'a': [1, 2]}
    priority: Priority = Priority.high


class Country(str, enum.Enum):
    """A long enumeration."""
    _ignore_ = 'code'
    for code in ('AD AE AF AG AL AM AO AR AT AU AZ BA BB BD BE BF BG BH BI BJ BN BO BR BS BT BW BY '
                 'BZ CA CD CF CG CH CI CL CM CN CO CR CU CV CY CZ DE DJ DK DM DO DZ EC EE EG ER ES '
                 'ET FI FJ FM FR GA GB GD GE GH GM GN GQ GR').split():
        vars()[code] = code


@model
class Address(BaseModel):
    street: str = Field(max_length=100)
    number: Union[int, str] = Field(description='A number, or one with a letter')
    zip: Annotated[str, Field(pattern=r'^\d{4,5}$')]
    city: str
    country: Country
    location: Optional[tuple[Annotated[float, Field(ge=-90, le=90)],
                             Annotated[float, Field(ge=-180, le=180)]]] = None


Survey = pydantic.create_model('Survey', __doc__='Many questions.',
                               **{'question_%02d' % i: (kind, default) for i,
                                  (kind, default) in enumerate([(Literal['yes', 'no', 'unknown'], ...),
                                      (Optional[str], None), (Annotated[int, Field(ge=1, le=5)], ...)] * 10)})
model(Survey)


class Employee(BaseModel):
    name: str
    manager: Optional['Employee'] = None
    reports: list['Employee'] = []
    department: 'Department'


class Department(BaseModel):
    name: str
    head: Optional[Employee] = None
    parent: Optional['Department'] = None
    budgets: dict[str, 'Budget'] = {}


class Budget(BaseModel):
    year: Annotated[int, Field(ge=2000, le=2100)]
    amount: Annotated[float, Field(ge=0)]
    approved_by: Optional[Employee] = None


@model
class Organisation(BaseModel):
    departments: list[Department]
    version: Literal['1.0'] = '1.0'


@model
class Empty(BaseModel):
    pass


@model
class Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, title='A strict one', use_attribute_docstrings=True)
    flag: pydantic.StrictBool
    """Whether."""
    text: Annotated[pydantic.StrictStr, pydantic.StringConstraints(strip_whitespace=True, to_lower=True,
        max_length=10)]
    """What."""
    number: Union[pydantic.StrictInt, pydantic.StrictFloat]


@model
class Entities(BaseModel):
    """What is found in a text."""

    class Span(BaseModel):
        text: str
        begin: Annotated[int, Field(ge=0)]
        end: Annotated[int, Field(ge=0)]
        label: Literal['PERSON', 'ORG', 'PLACE', 'DATE', 'OTHER']
        confidence: Annotated[float, Field(ge=0, le=1)]

    spans: list[Span]
    language: Annotated[str, Field(pattern='^[a-z]{2}(-[A-Z]{2})?$')]
    summary: str = Field(max_length=280)
    sentiment: Literal['positive', 'neutral', 'negative']


@model
class Recipe(BaseModel):
    class Ingredient(BaseModel):
        name: str
        amount: Optional[float] = Field(default=None, ge=0)
        unit: Optional[Literal['g', 'kg', 'ml', 'l', 'tsp', 'tbsp', 'piece']] = None

    title: str
    servings: int = Field(default=4, ge=1, le=24)
    ingredients: list[Ingredient] = Field(min_length=1)
    steps: list[Annotated[str, Field(min_length=5)]] = Field(min_length=1, max_length=15)
    minutes: Optional[Annotated[int, Field(gt=0)]] = None
    diet: set[Literal['vegan', 'vegetarian', 'gluten-free']] = set()


# ---- pydantic 1 ----

def pydantic_1():
    import pydantic.v1 as v1

    class Level(str, enum.Enum):
        debug = 'debug'
        info = 'info'

    class Inner(v1.BaseModel):
        """What stands inside."""
        a: int
        b: Optional[str]

    class Outer(v1.BaseModel):
        """A reference with notes beside it is an allOf of one."""
        first: Inner = v1.Field(..., description='The first one')
        second: Optional[Inner] = v1.Field(None, title='Second')
        level: Level = Level.info
        many: list[Inner] = []

    class Constrained(v1.BaseModel):
        code: v1.constr(regex='^[A-Z]{3}$')
        short: v1.constr(min_length=1, max_length=5)
        number: v1.conint(gt=0, lt=100)
        real: v1.confloat(ge=0, le=1)
        multiple: v1.conint(multiple_of=5)
        few: v1.conlist(int, min_items=1, max_items=3)
        unique: v1.conset(str, max_items=3)
        mail: v1.EmailStr
        url: v1.HttpUrl
        ident: v1.UUID4
        when: datetime.datetime
        span: datetime.timedelta
        secret: v1.SecretStr
        address: v1.IPvAnyAddress
        price: v1.condecimal(max_digits=5, decimal_places=2)
        pair: tuple[int, str]
        const: str = v1.Field('x', const=True)
        some: Literal['a', 'b'] = 'a'
        either: Union[int, str] = 1
        anything: Any = None
        mapping: dict[str, int] = {}
        keyed: dict[v1.constr(regex='^x_'), int] = {}

    class Node(v1.BaseModel):
        value: float
        children: list['Node'] = []

        class Config:
            extra = 'forbid'

    class Cat1(v1.BaseModel):
        kind: Literal['cat']
        lives: int

    class Dog1(v1.BaseModel):
        kind: Literal['dog']
        good: bool

    class Pets(v1.BaseModel):
        pet: Union[Cat1, Dog1] = v1.Field(..., discriminator='kind')
        others: list[Union[Cat1, Dog1]] = []

    class Example(v1.BaseModel):
        name: str
        count: int = v1.Field(3, example=4, ge=0)

        class Config:
            title = 'An example'
            schema_extra = {'example': {'name': 'x', 'count': 1}}

    Node.update_forward_refs(Node=Node)
    source = 'pydantic %s (pydantic.v1 %s), models of collect_schemas.py' % (version('pydantic'), v1.VERSION)
    for cls in (Outer, Constrained, Node, Pets, Example):
        yield 'pydantic1/' + cls.__name__, source, {'$schema': DRAFT_7, **cls.schema()}


def pydantic_2():
    source = 'pydantic %s, models of collect_schemas.py' % version('pydantic')
    for name, cls, mode in PYDANTIC:
        yield 'pydantic/' + name, source, pydantic.TypeAdapter(cls).json_schema(mode=mode)


# ---- models in packages ----

MODELS = {
    'openai': ['types.chat:ChatCompletion', 'types.chat:ChatCompletionMessage',
        'types.chat:ChatCompletionTokenLogprob', 'types:CompletionUsage', 'types:CreateEmbeddingResponse',
        'types:ModerationCreateResponse', 'types:FileObject', 'types:CompoundFilter',
        'types.responses:ResponseUsage', 'types.responses:FileSearchTool',
        'types.responses:ResponseFunctionWebSearch', 'types.responses:ResponseOutputMessage'],
    'anthropic': ['types:Message', 'types:ErrorResponse', 'types:CacheCreation', 'types:TextBlock',
        'types:Usage', 'types:Container', 'types:MessageTokensCount', 'types:ContentBlockDeltaEvent'],
    'groq': ['types.chat:ChatCompletionChunk'],
    'ollama': ['_types:ChatRequest', '_types:Message', '_types:Tool', '_types:Options'],
    'mcp': ['types:Tool', 'types:CallToolResult', 'types:Resource', 'types:ModelPreferences',
        'types:ElicitRequestFormParams', 'types:ProgressNotification', 'types:ListRootsResult',
        'types:CompleteRequest'],
    'fastapi': ['openapi.models:Info', 'openapi.models:Server', 'openapi.models:Schema',
        'openapi.models:OAuthFlows', 'openapi.models:Link'],
    'langchain-core': ['langchain_core.messages:AIMessage', 'langchain_core.messages:HumanMessage',
        'langchain_core.messages:ToolMessage', 'langchain_core.documents:Document',
        'langchain_core.outputs:LLMResult'],
    'geojson-pydantic': ['geojson_pydantic:Point', 'geojson_pydantic:Polygon',
        'geojson_pydantic:GeometryCollection', 'geojson_pydantic:Feature'],
    'openapi-pydantic': ['openapi_pydantic:Link', 'openapi_pydantic:SecurityScheme',
        'openapi_pydantic:Schema'],
    'agent-client-protocol': ['acp.schema:PlanUpdate', 'acp.schema:PromptRequest',
        'acp.schema:RequestPermissionRequest', 'acp.schema:ElicitationSchema', 'acp.schema:NesDiagnostic',
        'acp.schema:ConfigOptionUpdate', 'acp.schema:CreateTerminalRequest'],
    'google-genai': ['types:SafetySetting', 'types:FunctionCall', 'types:Blob', 'types:Schema'],
    'pydantic-extra-types': ['pydantic_extra_types.color:Color', 'pydantic_extra_types.coordinate:Coordinate',
        'pydantic_extra_types.mac_address:MacAddress', 'pydantic_extra_types.payment:PaymentCardNumber',
        'pydantic_extra_types.routing_number:ABARoutingNumber', 'pydantic_extra_types.domain:DomainStr'],
}


def package_models():
    for package, names in MODELS.items():
        for name in names:
            with passing_over('%s %s' % (package, name)):
                module, cls = name.split(':')
                first = module.split('.')[0]
                if first in ('types', '_types', 'openapi'):
                    module = {'google-genai': 'google.genai'}.get(package, package) + '.' + module
                made = pydantic.TypeAdapter(getattr(importlib.import_module(module), cls)).json_schema()
                yield '%s/%s' % (package, cls), '%s %s' % (package, version(package)), made


# ---- what libraries make of models and functions ----

class Step(BaseModel):
    explanation: str
    output: str


class MathReasoning(BaseModel):
    steps: list[Step]
    final_answer: str


class UiType(str, enum.Enum):
    div = 'div'
    button = 'button'
    header = 'header'
    section = 'section'
    field = 'field'
    form = 'form'


class Attribute(BaseModel):
    name: str
    value: str


class Ui(BaseModel):
    type: UiType
    label: str
    children: list['Ui']
    attributes: list[Attribute]


class UiResponse(BaseModel):
    ui: Ui


class Category(str, enum.Enum):
    violence = 'violence'
    sexual = 'sexual'
    self_harm = 'self_harm'


class ContentCompliance(BaseModel):
    is_violating: bool
    category: Optional[Category] = Field(description='Where it violates a policy')
    explanation_if_violating: Optional[str]


class Condition(BaseModel):
    column: str
    operator: Literal['eq', 'ne', 'lt', 'gt', 'in']
    value: Union[str, int, float, list[str], 'ColumnName']


class ColumnName(BaseModel):
    column_name: str


class Query(BaseModel):
    """A query of a table."""
    table: Literal['orders', 'customers', 'products']
    columns: list[str] = Field(description='The columns to show', min_length=1)
    conditions: list[Condition]
    order_by: Literal['asc', 'desc'] = 'asc'
    limit: Optional[int] = Field(default=None, ge=1, le=100)


def strict_models():
    from openai.lib._pydantic import to_strict_json_schema
    source = 'openai %s, to_strict_json_schema, models of collect_schemas.py' % version('openai')
    for cls in (MathReasoning, UiResponse, ContentCompliance, Query, Invoice, Formula, Account, Entities,
                Recipe, Comment):
        yield 'openai-strict/' + cls.__name__, source, to_strict_json_schema(cls)


def anthropic_models():
    import anthropic
    source = 'anthropic %s, transform_schema, models of collect_schemas.py' % version('anthropic')
    for cls in (Person, Owner, Numbers, Collections):
        yield 'anthropic/' + cls.__name__, source, anthropic.transform_schema(cls.model_json_schema())


def get_weather(city: str, unit: Literal['celsius', 'fahrenheit'] = 'celsius', days: int = 1) -> dict[str,
    float]:
    """The weather of a city.

    Args:
        city: The name of the city
        unit: The unit of the temperatures
        days: How many days ahead
    """


def send_mail(to: list[str], subject: str, body: str, cc: Optional[list[str]] = None,
              urgent: bool = False) -> bool:
    """Sends a message."""


def book_table(guests: Annotated[int, Field(ge=1, le=12, description='How many people')],
               when: datetime.datetime, name: Annotated[str, Field(min_length=2)],
               wishes: Optional[str] = None) -> Person:
    """Books a table."""


def search_files(pattern: str, folder: pathlib.Path = pathlib.Path('.'), *,
                 limit: Annotated[int, Field(gt=0, lt=1000)] = 50,
                 kinds: set[Literal['file', 'folder', 'link']] = frozenset({'file'})) -> list[str]:
    """Searches files."""


def move(target: Union[Point, str], speed: float = 1.0, via: list[Point] = []) -> Union[Point, None]:
    """Moves somewhere."""


def create_invoice(invoice: Invoice, send: bool = True) -> Invoice:
    """Makes an invoice."""


def transfer(amount: decimal.Decimal, iban: Annotated[str, Field(pattern=r'^[A-Z]{2}\d{2}[A-Z0-9]{11,30}$')],
             on: Optional[datetime.date] = None, reference: Annotated[str,
                 Field(max_length=140)] = '') -> uuid.UUID:
    """Transfers money."""


def set_options(options: dict[str, Union[bool, int, str]],
                priority: Priority = Priority.low) -> tuple[int, str]:
    """Sets options."""


def evaluate(expression: Expression) -> float:
    """Evaluates an expression."""


def status() -> Movie:
    """Says how things are."""


def log(message: str, level: Literal['debug', 'info', 'warning', 'error'] = 'info', data: Any = None,
        **more: str) -> None:
    """Logs something."""


FUNCTIONS = [get_weather, send_mail, book_table, search_files, move, create_invoice, transfer, set_options,
             evaluate, status]


def fastmcp_functions():
    from fastmcp.tools import Tool
    source = 'fastmcp %s, functions of collect_schemas.py' % version('fastmcp')
    for f in FUNCTIONS:
        tool = Tool.from_function(f)
        yield 'fastmcp/%s' % f.__name__, source, tool.parameters
        if tool.output_schema:
            yield 'fastmcp/%s (output)' % f.__name__, source, tool.output_schema


def mcp_functions():
    from mcp.server.mcpserver.tools import Tool
    source = 'mcp %s, functions of collect_schemas.py' % version('mcp')
    for f in (book_table, search_files, set_options, move):
        tool = Tool.from_function(f)
        yield 'mcp/%s' % f.__name__, source, tool.parameters
        if tool.fn_metadata.output_schema:
            yield 'mcp/%s (output)' % f.__name__, source, tool.fn_metadata.output_schema


def langchain_functions():
    from langchain_core.utils.function_calling import convert_to_openai_function
    source = ('langchain-core %s, convert_to_openai_function, functions of collect_schemas.py'
              % version('langchain-core'))
    for f in (get_weather, book_table, set_options):
        yield 'langchain/%s' % f.__name__, source, convert_to_openai_function(f)['parameters']
    for cls in (Query, Owner):
        made = convert_to_openai_function(cls, strict=True)
        yield 'langchain/%s (strict)' % cls.__name__, source, made['parameters']


def agents_functions():
    from agents import function_tool
    source = 'openai-agents %s, function_tool, functions of collect_schemas.py' % version('openai-agents')
    for f in (get_weather, book_table, transfer):
        yield 'openai-agents/%s' % f.__name__, source, function_tool(f).params_json_schema


def pydantic_ai_functions():
    from pydantic_ai import Tool
    source = 'pydantic-ai-slim %s, Tool, functions of collect_schemas.py' % version('pydantic-ai-slim')
    for f in (get_weather, search_files, log):
        yield 'pydantic-ai/%s' % f.__name__, source, Tool(f).function_schema.json_schema


# ---- MCP servers ----

# The command of a server, the package it is in, its tools; with a ">" behind it, the output schema of one.
SERVERS = [
    ('mcp-server-git', 'mcp-server-git', 'git_status git_diff git_add git_log git_branch'),
    ('mcp-server-fetch', 'mcp-server-fetch', 'fetch'),
    ('mcp-server-time --local-timezone UTC', 'mcp-server-time',
     'convert_time get_current_time> convert_time>'),
    ('awslabs.aws-documentation-mcp-server', 'awslabs.aws-documentation-mcp-server',
     'read_documentation search_table search_documentation search_table> search_documentation>'),
    ('duckduckgo-mcp-server', 'duckduckgo-mcp-server', 'search fetch_content'),
    ('excel-mcp-server stdio', 'excel-mcp-server',
     'create_workbook set_workbook_settings import_csv export_csv read_range write_range sort_range '
     'transform_range find_cells format_range set_sheet_layout add_conditional_format create_chart '
     'add_slicer set_table create_pivot_table describe_workbook> describe_sheet> trace_formula>'),
    ('wikipedia-mcp', 'wikipedia-mcp',
     'search_wikipedia extract_key_facts search_wikipedia> get_article> get_coordinates>'),
    ('arxiv-mcp-server', 'arxiv-mcp-server',
     'search_papers download_paper citation_graph export_citations get_paper_latex read_paper_section '
     'watch_topic'),
    ('redis-mcp-server', 'redis-mcp-server',
     'hset json_set lrem set xadd zadd hybrid_search set_vector_in_hash hexists> lrange> scan_keys> get>'),
    ('word_mcp_server', 'office-word-mcp-server',
     'create_document add_table set_table_column_widths format_table_cell_text'),
    ('mcp-text-editor', 'mcp-text-editor', 'get_text_file_contents edit_text_file_contents'),
    ('mcp-shell-server', 'mcp-shell-server', 'shell_execute'),
]


def server_tools(command):
    """The tools that a server lists.  It is started for that, in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL, text=True, cwd=folder,
                                  env={'PATH': '/usr/bin:/bin', 'HOME': folder, 'LANG': 'C.UTF-8'})
        timer = threading.Timer(60, server.kill)
        timer.start()

        def ask(**message):
            server.stdin.write(json.dumps({'jsonrpc': '2.0', **message}) + '\n')
            server.stdin.flush()
            if 'id' not in message:
                return None
            for line in server.stdout:
                with contextlib.suppress(ValueError):
                    answer = json.loads(line)
                    if answer.get('id') == message['id']:
                        return answer['result']
            raise EOFError('the server has ended')

        try:
            ask(id=1, method='initialize', params={'protocolVersion': '2025-06-18', 'capabilities': {},
                                                   'clientInfo': {'name': 'collect_schemas', 'version': '1'}})
            ask(method='notifications/initialized')
            return {tool['name']: tool for tool in ask(id=2, method='tools/list', params={})['tools']}
        finally:
            timer.cancel()
            server.kill()
            server.wait()


def mcp_servers():
    for line, package, wanted in SERVERS:
        command = line.split()
        with passing_over(command[0]):
            command[0] = shutil.which(command[0]) or sys.exit('%s is not installed' % command[0])
            with open(command[0]) as script:
                python = script.readline()[2:].strip()
            number = subprocess.run([python, '-c', 'import importlib.metadata as m; print(m.version(%r))'
                                     % package], capture_output=True, text=True, check=True).stdout.strip()
            tools = server_tools(command)
            for name in wanted.split():
                tool = tools[name.rstrip('>')]
                kind, note = ('outputSchema', ' (output)') if name.endswith('>') else ('inputSchema', '')
                yield '%s/%s%s' % (package, tool['name'], note), '%s %s' % (package, number), tool[kind]


# ---- zod 4, by hand ----

DRAFT_2020 = 'https://json-schema.org/draft/2020-12/schema'
DRAFT_2019 = 'https://json-schema.org/draft/2019-09/schema'
DRAFT_7 = 'http://json-schema.org/draft-07/schema#'
DRAFT_6 = 'http://json-schema.org/draft-06/schema#'
DRAFT_4 = 'http://json-schema.org/draft-04/schema#'

STRING = {'type': 'string'}
NUMBER = {'type': 'number'}
BOOLEAN = {'type': 'boolean'}
NULL = {'type': 'null'}
SAFE = {'type': 'integer', 'minimum': -9007199254740991, 'maximum': 9007199254740991}
HEX = '[0-9a-fA-F]'
DAY = (r'(?:(?:\d\d[2468][048]|\d\d[13579][26]|\d\d0[48]|[02468][048]00|[13579][26]00)-02-29'
       r'|\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)'
       r'|(?:02)-(?:0[1-9]|1\d|2[0-8])))')
CLOCK = r'(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d+)?)?'
OCTET = '(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9][0-9]|[0-9])'


def text(**more):
    return {'type': 'string', **more}


def closed(properties, optional=(), **more):
    """z.object in the output mode."""
    required = [name for name in properties if name not in optional]
    return {'type': 'object', 'properties': properties, **({'required': required} if required else {}),
            'additionalProperties': False, **more}


def given(properties, optional=()):
    """z.object in the input mode, where others are not forbidden."""
    made = closed(properties, optional)
    del made['additionalProperties']
    return made


def nullable(schema):
    return {'anyOf': [schema, NULL]}


def record(value, key=STRING):
    return {'type': 'object', 'propertyNames': key, 'additionalProperties': value}


def array(items, **more):
    return {'type': 'array', 'items': items, **more}


ZOD_EMAIL = text(format='email', pattern=r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@"
                                         r'([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$')
ZOD_UUID = text(format='uuid',
                pattern='^(%s{8}-%s{4}-[1-8]%s{3}-[89abAB]%s{3}-%s{12}|00000000-0000-0000-0000-000000000000)$'
                % ((HEX,) * 5))
ZOD_DATETIME = text(format='date-time', pattern='^%sT(?:%s(?:Z))$' % (DAY, CLOCK))
ZOD_DATE = text(format='date', pattern='^%s$' % DAY)
ZOD_IPV4 = text(format='ipv4', pattern=r'^(?:%s\.){3}%s$' % (OCTET, OCTET))

ZOD_4 = {
    'user': closed({'id': ZOD_UUID, 'email': ZOD_EMAIL, 'name': text(minLength=1, maxLength=50),
        'age': SAFE | {'minimum': 0}, 'website': text(format='uri'), 'createdAt': ZOD_DATETIME},
        ['age', 'website']),
    'email': ZOD_EMAIL,
    'dates': closed({'at': ZOD_DATETIME, 'day': ZOD_DATE, 'offset': text(format='date-time',
        pattern=r'^%sT(?:%s(?:Z|([+-](?:[01]\d|2[0-3]):[0-5]\d)))$' % (DAY, CLOCK)),
        'precise': text(format='date-time', pattern=r'^%sT(?:(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d\.\d{3}(?:Z))$'
        % DAY)}),
    'time': closed({'time': text(format='time', pattern='^%s$' % CLOCK)}),
    'duration': text(format='duration', pattern=r'^P(?:(\d+W)|(?!.*W)(?=\d|T\d)(\d+Y)?(\d+M)?(\d+D)?'
        r'(T(?=\d)(\d+H)?(\d+M)?(\d+([.,]\d+)?S)?)?)$'),
    'addresses': closed({'v4': ZOD_IPV4,
        'v6': text(format='ipv6', pattern='^((%s{1,4}:){7}%s{1,4}|::|(%s{1,4})?::(%s{1,4}:?){0,6})$'
        % ((HEX,) * 4)), 'cidr': text(format='cidrv4', pattern=r'^(%s\.){3}%s\/([0-9]|[1-2][0-9]|3[0-2])$'
        % (OCTET.replace('?:', ''), OCTET.replace('?:', '')))}, ['v6']),
    'ids': closed({'cuid': text(format='cuid', pattern=r'^[cC][^\s-]{8,}$'),
        'cuid2': text(format='cuid2', pattern='^[0-9a-z]+$'), 'ulid': text(format='ulid',
        pattern='^[0-9A-HJKMNP-TV-Za-hjkmnp-tv-z]{26}$'), 'nanoid': text(format='nanoid',
        pattern='^[a-zA-Z0-9_-]{21}$'), 'xid': text(format='xid', pattern='^[0-9a-vA-V]{20}$'),
        'ksuid': text(format='ksuid', pattern='^[A-Za-z0-9]{27}$'), 'guid': text(format='uuid',
        pattern='^(%s{8}-%s{4}-%s{4}-%s{4}-%s{12})$' % ((HEX,) * 5)), 'v4': text(format='uuid',
        pattern='^(%s{8}-%s{4}-4%s{3}-[89abAB]%s{3}-%s{12})$' % ((HEX,) * 5)),
        'e164': text(format='e164', pattern=r'^\+(?:[0-9]){6,14}[0-9]$'), 'jwt': text(format='jwt')}),
    'encoded': closed({'base64': text(format='base64', contentEncoding='base64',
        pattern='^$|^(?:[0-9a-zA-Z+/]{4})*(?:(?:[0-9a-zA-Z+/]{2}==)|(?:[0-9a-zA-Z+/]{3}=))?$'),
        'base64url': text(format='base64url', contentEncoding='base64url', pattern='^[A-Za-z0-9_-]*$'),
        'lower': text(format='lowercase', pattern='^[^A-Z]*$'), 'upper': text(format='uppercase',
        pattern='^[^a-z]*$')}),
    'several patterns': text(allOf=[{'pattern': '^hello.*'}, {'pattern': 'cruel'}, {'pattern': '.*world$'}],
        minLength=5, maxLength=60),
    'numbers': closed({'int': SAFE, 'int32': {'type': 'integer', 'minimum': -2147483648,
        'maximum': 2147483647}, 'float32': {'type': 'number', 'minimum': -3.4028234663852886e+38,
        'maximum': 3.4028234663852886e+38}, 'positive': NUMBER | {'exclusiveMinimum': 0},
        'percent': NUMBER | {'minimum': 0, 'maximum': 100}, 'between': NUMBER | {'exclusiveMinimum': 5,
        'exclusiveMaximum': 10}, 'step': NUMBER | {'multipleOf': 0.01},
        'natural': SAFE | {'exclusiveMinimum': 0}, 'even': SAFE | {'multipleOf': 2}, 'any': NUMBER}),
    'float64': NUMBER | {'minimum': -1.7976931348623157e+308, 'maximum': 1.7976931348623157e+308},
    'literals': closed({'one': text(const='hello'), 'number': NUMBER | {'const': 7},
        'yes': BOOLEAN | {'const': True}, 'mixed': {'enum': ['hello', None, 5]},
        'some': text(enum=['hello', 'zod', 'v4']), 'none': NULL, 'native': NUMBER | {'enum': [0, 1, 2]}}),
    'nullable': closed({'a': nullable(STRING), 'b': nullable(SAFE),
        'c': nullable(closed({'d': nullable(ZOD_DATE)})), 'e': nullable(array(nullable(BOOLEAN)))},
        ['b', 'e']),
    'record': record(BOOLEAN),
    'records': closed({'scores': record(NUMBER | {'minimum': 0}), 'byId': record(closed({'name': STRING}),
        ZOD_UUID), 'partial': record(SAFE, text(pattern='^[a-z]{1,8}$')),
        'deep': record(record(array(STRING)))}),
    'record of an enum': {'type': 'object', 'propertyNames': text(enum=['id', 'name', 'email']),
        'additionalProperties': STRING, 'required': ['id', 'name', 'email']},
    'tuple': {'type': 'array', 'prefixItems': [STRING, NUMBER], 'items': BOOLEAN},
    'tuples': closed({'point': {'type': 'array', 'prefixItems': [NUMBER, NUMBER]},
        'range': {'type': 'array', 'prefixItems': [ZOD_DATE, ZOD_DATE], 'minItems': 2, 'maxItems': 2},
        'entries': array({'type': 'array', 'prefixItems': [STRING, SAFE]}, maxItems=4)}),
    'discriminated union': {'oneOf': [closed({'type': text(const='text'), 'text': STRING}),
        closed({'type': text(const='image'), 'url': text(format='uri'), 'alt': STRING}, ['alt']),
        closed({'type': text(const='link'), 'href': text(format='uri'), 'title': nullable(STRING)})]},
    'result': {'anyOf': [closed({'status': text(const='success'), 'data': STRING}),
        closed({'status': text(const='failed'), 'error': closed({'code': SAFE, 'message': STRING})})]},
    'intersection': {'allOf': [given({'name': STRING}), given({'age': SAFE, 'name': text(maxLength=20)},
        ['age'])]},
    'defaults': closed({'theme': text(default='light', enum=['light', 'dark']),
        'limit': {'default': 10, **SAFE}, 'tags': {'default': [], **array(STRING)},
        'open': {'default': True, **BOOLEAN}}),
    'loose': {'type': 'object', 'properties': {'name': STRING}, 'required': ['name'],
        'additionalProperties': {}},
    'catchall': {'type': 'object', 'properties': {'name': STRING}, 'required': ['name'],
        'additionalProperties': text(maxLength=5)},
    'strip': given({'query': text(minLength=1, description='What to search'),
        'limit': SAFE | {'exclusiveMinimum': 0, 'maximum': 50, 'default': 10}, 'filters': record({})},
        ['limit', 'filters']),
    'recursive': closed({'name': STRING, 'subcategories': array({'$ref': '#'})}),
    'tree': {'$ref': '#/$defs/__schema0', '$defs': {'__schema0': {'anyOf': [STRING, NUMBER, BOOLEAN, NULL,
        array({'$ref': '#/$defs/__schema0'}), record({'$ref': '#/$defs/__schema0'})]}}},
    'ids and references': closed({'first': {'$ref': '#/$defs/name'},
        'last': nullable({'$ref': '#/$defs/name'}), 'job': {'description': 'Current job',
        '$ref': '#/$defs/job'}}, ['last'], **{'$defs': {'name': text(id='name', minLength=1),
        'job': closed({'id': SAFE, 'boss': {'$ref': '#/$defs/name'}}, ['boss'], id='job', readOnly=True)}}),
    'any and never': closed({'any': {}, 'never': {'not': {}}, 'unknown': {}}, ['any', 'never', 'unknown']),
    'registry of tools': closed({'calls': array({'oneOf': [closed({'tool': text(const='search'),
        'args': closed({'q': text(minLength=1), 'n': SAFE | {'minimum': 1, 'maximum': 20}})}),
        closed({'tool': text(const='open'), 'args': closed({'url': text(format='uri')})}),
        closed({'tool': text(const='finish'), 'args': closed({'answer': STRING,
        'sources': array(text(format='uri'))})})]}, minItems=1, maxItems=5), 'thought': text(maxLength=200)}),
    'startsWith': closed({'key': text(pattern='^sk-.*'), 'file': text(pattern=r'.*\.tsx?$'),
        'word': text(pattern='stuff'), 'hex': text(format='sha256_hex', pattern='^[0-9a-fA-F]{64}$'),
        'host': text(format='hostname',
        pattern=r'^(?=.{1,253}\.?$)[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?'
        r'(?:\.[a-zA-Z0-9](?:[-0-9a-zA-Z]{0,61}[0-9a-zA-Z])?)*\.?$')}),
}


def zod_4():
    source = 'zod 4, z.toJSONSchema, written by hand after its documentation'
    for name, schema in ZOD_4.items():
        yield 'zod4/' + name, source, {'$schema': DRAFT_2020, **schema}
    yield 'zod4/user (draft 7)', source + ', target draft-7', {'$schema': DRAFT_7,
        **closed({'at': ZOD_DATETIME, 'pair': {'type': 'array', 'items': [STRING, SAFE],
                                               'additionalItems': BOOLEAN},
                  'kind': {'anyOf': [text(const='a'), text(const='b')]},
                  'name': {'allOf': [{'$ref': '#/definitions/name'}]}},
                 definitions={'name': text(maxLength=9)})}
    yield 'zod4/numbers (draft 4)', source + ', target draft-4', {'$schema': DRAFT_4,
        **closed({'between': NUMBER | {'minimum': 5, 'exclusiveMinimum': True, 'maximum': 10,
                                       'exclusiveMaximum': True},
                  'positive': NUMBER | {'minimum': 0, 'exclusiveMinimum': True}, 'one': text(enum=['hello']),
                  'none': text(enum=['null'], nullable=True)})}


# ---- zod 3, by hand ----

ZOD_3 = {
    'user': closed({'name': text(minLength=2), 'email': text(format='email'), 'id': text(format='uuid'),
        'age': {'type': 'integer', 'exclusiveMinimum': 0}, 'url': text(format='uri'),
        'role': text(enum=['admin', 'user']), 'nick': {'type': ['string', 'null']}}, ['url']),
    'dates': closed({'at': text(format='date-time'), 'day': text(format='date'), 'clock': text(format='time'),
        'lasts': text(format='duration'), 'millis': {'type': 'integer', 'format': 'unix-time'}}, ['millis']),
    'strings': closed({'cuid': text(pattern=r'^[cC][^\s-]{8,}$'), 'cuid2': text(pattern='^[0-9a-z]+$'),
        'ulid': text(pattern='^[0-9A-HJKMNP-TV-Z]{26}$'), 'nanoid': text(pattern='^[a-zA-Z0-9_-]{21}$'),
        'starts': text(pattern=r'^https\:\/\/'), 'ends': text(pattern=r'\.de$'),
        'includes': text(pattern=r'a\.b'), 'both': text(allOf=[{'pattern': r'^x\-'}, {'pattern': r'\-y$'}]),
        'base64': text(contentEncoding='base64'), 'ip': text(anyOf=[{'format': 'ipv4'}, {'format': 'ipv6'}]),
        'ipv4': text(format='ipv4'), 'trimmed': text(minLength=3, maxLength=3),
        'insensitive': text(pattern='^[aA][bB][cC]$')}),
    'numbers': closed({'int': {'type': 'integer'}, 'big': {'type': 'integer', 'format': 'int64'},
        'multiple': NUMBER | {'multipleOf': 2}, 'range': NUMBER | {'minimum': 1, 'maximum': 1},
        'above': NUMBER | {'exclusiveMinimum': 1}, 'count': {'type': 'integer', 'minimum': 0,
        'maximum': 10}}),
    'unions': closed({'primitives': {'type': ['string', 'number', 'boolean', 'integer', 'null']},
        'literals': {'type': ['number', 'string', 'null', 'boolean'], 'enum': [123, 'abc', None, True]},
        'objects': {'anyOf': [STRING, closed({'foo': STRING, 'bar': NUMBER}, ['bar'])]},
        'nullable': {'anyOf': [closed({'hello': STRING}, ['hello']), NULL]}}),
    'discriminated union': {'anyOf': [closed({'type': text(const='a'), 'a': STRING}),
        closed({'type': text(const='b'), 'b': NUMBER}), closed({'type': text(const='c')})]},
    'tuple and map': closed({'tuple': {'type': 'array', 'minItems': 3, 'maxItems': 3,
        'items': [STRING, NUMBER, BOOLEAN]}, 'rest': {'type': 'array', 'minItems': 1, 'items': [STRING],
        'additionalItems': NUMBER}, 'map': {'type': 'array', 'maxItems': 125,
        'items': {'type': 'array', 'items': [text(format='uuid'), BOOLEAN], 'minItems': 2, 'maxItems': 2}},
        'set': {'type': 'array', 'uniqueItems': True, 'items': STRING, 'maxItems': 4}}),
    'records': closed({'plain': {'type': 'object', 'additionalProperties': BOOLEAN},
        'keys': {'type': 'object', 'additionalProperties': BOOLEAN, 'propertyNames': {'minLength': 1}},
        'names': {'type': 'object', 'additionalProperties': NUMBER, 'propertyNames': {'enum': ['a', 'b']}},
        'passthrough': {'type': 'object', 'properties': {'foo': STRING, 'bar': NUMBER}, 'required': ['foo'],
        'additionalProperties': True}, 'catchall': {'type': 'object', 'properties': {'foo': STRING},
        'required': ['foo'], 'additionalProperties': BOOLEAN}}),
    'intersection': {'allOf': [given({'a': STRING}), given({'b': NUMBER}, ['b'])]},
    'intersection of strings': {'allOf': [text(minLength=1), text(maxLength=4)]},
    'named': {'$ref': '#/definitions/MySchema',
        'definitions': {'MySchema': closed({'myString': text(minLength=5),
        'myUnion': {'type': ['number', 'boolean']},
        'again': {'$ref': '#/definitions/MySchema/properties/myString'},
        'list': array({'$ref': '#/definitions/MySchema'})}, ['list'])}},
    'recursive': closed({'name': STRING, 'children': array({'$ref': '#'}),
        'first': {'$ref': '#/properties/name'}}, ['first']),
    'defaults': closed({'a': text(default='x'), 'b': NUMBER | {'default': 42},
        'c': BOOLEAN | {'default': False}, 'any': {}, 'never': {'not': {}}}, ['a', 'b', 'c', 'any', 'never']),
}


def zod_3():
    source = 'zod 3, zod-to-json-schema, written by hand after its documentation'
    for name, schema in ZOD_3.items():
        yield 'zod3/' + name, source, {**schema, '$schema': DRAFT_7}
    yield 'zod3/openAi target', source + ', target openAi', {'$schema': DRAFT_2019 + '#', **closed({
        'location': text(description='The city'), 'unit': {'anyOf': [text(enum=['c', 'f']), NULL]},
                  'days': {'type': ['integer', 'null']}})}
    yield 'zod3/openApi3 target', source + ', target openApi3', {'$schema': DRAFT_4,
        **closed({'nick': text(nullable=True), 'object': closed({'hello': STRING}, nullable=True),
                  'one': text(enum=['hej']), 'above': NUMBER | {'minimum': 1, 'exclusiveMinimum': True},
                  'either': {'anyOf': [STRING, NUMBER], 'nullable': True},
                  'colour': text(enum=['red', 'green'], nullable=True)}, ['nick'])}


# ---- old drafts and rare keywords, by hand ----

DRAFTS = {
    'draft 4/product': {'$schema': DRAFT_4, 'title': 'Product', 'type': 'object',
        'properties': {'id': {'description': 'The unique identifier', 'type': 'integer'}, 'name': STRING,
        'price': {'type': 'number', 'minimum': 0, 'exclusiveMinimum': True},
        'tags': {'type': 'array', 'items': STRING, 'minItems': 1, 'uniqueItems': True},
        'dimensions': {'type': 'object', 'properties': {'length': NUMBER, 'width': NUMBER, 'height': NUMBER},
        'required': ['length', 'width', 'height']}, 'warehouseLocation': {'$ref': '#/definitions/geo'}},
        'required': ['id', 'name', 'price'], 'definitions': {'geo': {'type': 'object',
        'properties': {'latitude': {'type': 'number', 'minimum': -90, 'maximum': 90},
        'longitude': {'type': 'number', 'minimum': -180, 'maximum': 180, 'exclusiveMaximum': True}}}}},
    'draft 4/storage': {'$schema': DRAFT_4, 'type': 'object', 'properties': {'storage': {'type': 'object',
        'oneOf': [{'$ref': '#/definitions/disk'}, {'$ref': '#/definitions/nfs'},
        {'$ref': '#/definitions/tmpfs'}]}, 'fstype': {'enum': ['ext3', 'ext4', 'btrfs']},
        'options': {'type': 'array', 'minItems': 1, 'items': STRING, 'uniqueItems': True},
        'readonly': BOOLEAN}, 'required': ['storage'],
        'definitions': {'disk': {'properties': {'type': {'enum': ['disk']},
        'device': text(pattern='^/dev/[^/]+(/[^/]+)*$')}, 'required': ['type', 'device'],
        'additionalProperties': False}, 'nfs': {'properties': {'type': {'enum': ['nfs']},
        'remotePath': text(pattern='^(/[^/]+)+$'), 'server': text(anyOf=[{'format': 'hostname'},
        {'format': 'ipv4'}, {'format': 'ipv6'}])}, 'required': ['type', 'server', 'remotePath'],
        'additionalProperties': False}, 'tmpfs': {'properties': {'type': {'enum': ['tmpfs']},
        'sizeInMB': {'type': 'integer', 'minimum': 16, 'maximum': 512}}, 'required': ['type', 'sizeInMB'],
        'additionalProperties': False}}},
    'draft 4/tuple': {'$schema': DRAFT_4, 'type': 'array', 'items': [STRING, {'type': 'integer'}],
        'additionalItems': False, 'minItems': 1},
    'draft 7/address': {'$schema': DRAFT_7, 'type': 'object', 'properties': {'street_address': STRING,
        'country': {'default': 'United States of America', 'enum': ['United States of America', 'Canada']},
        'postal_code': STRING}, 'if': {'properties': {'country': {'const': 'United States of America'}},
        'required': ['country']},
        'then': {'properties': {'postal_code': {'pattern': '[0-9]{5}(-[0-9]{4})?'}}},
        'else': {'properties': {'postal_code': {'pattern': '[A-Z][0-9][A-Z] [0-9][A-Z][0-9]'}}}},
    'draft 7/shipping': {'$schema': DRAFT_7, 'type': 'object', 'properties': {'method': text(enum=['pickup',
        'parcel', 'freight']), 'shop': STRING, 'address': STRING, 'pallets': {'type': 'integer',
        'minimum': 1}}, 'required': ['method'], 'additionalProperties': False,
        'allOf': [{'if': {'properties': {'method': {'const': 'pickup'}}}, 'then': {'required': ['shop']}},
        {'if': {'properties': {'method': {'const': 'parcel'}}}, 'then': {'required': ['address']}},
        {'if': {'properties': {'method': {'const': 'freight'}}}, 'then': {'required': ['address',
        'pallets']}}]},
    'draft 7/dependencies': {'$schema': DRAFT_7, 'type': 'object', 'properties': {'name': STRING,
        'credit_card': text(pattern=r'^\d{16}$'), 'billing_address': STRING, 'cvc': text(pattern=r'^\d{3}$'),
        'gift': BOOLEAN, 'message': STRING}, 'required': ['name'],
        'dependencies': {'credit_card': ['billing_address', 'cvc'],
        'gift': {'properties': {'message': {'minLength': 5}}, 'required': ['message']}}},
    'draft 2020/dependent': {'$schema': DRAFT_2020, 'type': 'object',
        'properties': {'from': text(format='date'), 'to': text(format='date'), 'zone': STRING},
        'additionalProperties': False, 'dependentRequired': {'from': ['to'], 'to': ['from']},
        'dependentSchemas': {'zone': {'required': ['from']}}},
    'draft 7/not': {'$schema': DRAFT_7, 'type': 'object', 'properties': {'name': {'type': 'string',
        'not': {'enum': ['root', 'admin', '']}}, 'kind': {'not': {'type': ['null', 'object', 'array']}},
        'port': {'type': 'integer', 'minimum': 1, 'maximum': 65535, 'not': {'const': 22}},
        'word': {'type': 'string', 'not': {'pattern': '^[0-9]'}, 'maxLength': 9}},
        'required': ['name', 'port'], 'additionalProperties': False},
    'draft 7/patternProperties': {'$schema': DRAFT_7, 'type': 'object', 'properties': {'builtin': NUMBER},
        'patternProperties': {'^S_': STRING, '^I_[a-z]{1,9}$': {'type': 'integer', 'minimum': 0}},
        'additionalProperties': False, 'minProperties': 1, 'maxProperties': 5},
    'draft 7/propertyNames': {'$schema': DRAFT_7, 'type': 'object',
        'propertyNames': {'pattern': '^[A-Za-z_][A-Za-z0-9_]*$', 'maxLength': 12},
        'additionalProperties': {'type': ['string', 'number']}, 'minProperties': 2, 'maxProperties': 4},
    'draft 6/contains': {'$schema': DRAFT_6, 'type': 'array', 'items': {'type': ['integer', 'string']},
        'contains': {'type': 'string', 'minLength': 1}, 'maxItems': 6},
    'draft 2020/contains': {'$schema': DRAFT_2020, 'type': 'array', 'prefixItems': [{'const': 'v1'}],
        'items': {'type': 'integer', 'minimum': 0, 'maximum': 9}, 'contains': {'const': 7}, 'minContains': 1,
        'maxContains': 2, 'maxItems': 6},
    'draft 2020/unevaluated': {'$schema': DRAFT_2020, 'allOf': [{'$ref': '#/$defs/base'}],
        'properties': {'extra': STRING}, 'unevaluatedProperties': False,
        '$defs': {'base': {'type': 'object', 'properties': {'id': {'type': 'integer', 'minimum': 0}},
        'required': ['id']}}},
    'draft 2019/references': {'$schema': DRAFT_2019, 'type': 'object',
        'properties': {'a': {'$ref': '#/$defs/short', 'minLength': 2},
        'b': {'$ref': '#letters', 'description': 'By its anchor'}}, 'required': ['a'],
        '$defs': {'short': text(maxLength=4), 'letters': text(pattern='^[a-z]+$', **{'$anchor': 'letters'})}},
    'draft 2020/oneOf of bounds': {'$schema': DRAFT_2020, 'type': 'object',
        'properties': {'size': {'oneOf': [{'type': 'integer', 'minimum': 1, 'maximum': 10},
        {'type': 'integer', 'minimum': 100}, {'const': 'auto'}]}}, 'required': ['size'],
        'additionalProperties': False},
    'draft 2020/required alternatives': {'$schema': DRAFT_2020, 'type': 'object',
        'properties': {'email': text(format='email'), 'phone': text(pattern=r'^\+[0-9]{7,15}$'),
        'name': STRING}, 'required': ['name'], 'anyOf': [{'required': ['email']}, {'required': ['phone']}],
        'additionalProperties': False},
    'draft 2020/formats': {'$schema': DRAFT_2020, 'type': 'object', 'properties': {name: text(format=name)
        for name in ('date', 'time', 'date-time', 'duration', 'email', 'hostname', 'ipv4', 'ipv6', 'uri',
        'uri-reference', 'uuid', 'json-pointer', 'regex')}, 'additionalProperties': False},
    'OpenAPI 3.0/pet': {'type': 'object', 'required': ['id', 'name'], 'properties': {'id': {'type': 'integer',
        'format': 'int64', 'example': 10, 'readOnly': True}, 'name': text(example='doggie'),
        'category': {'type': 'object', 'nullable': True, 'properties': {'id': {'type': 'integer',
        'format': 'int32'}, 'name': STRING}, 'xml': {'name': 'category'}},
        'photoUrls': array(STRING, xml={'wrapped': True}), 'weight': {'type': 'number', 'format': 'double',
        'nullable': True, 'minimum': 0}, 'factor': NUMBER | {'format': 'float'}, 'data': text(format='byte'),
        'status': text(enum=['available', 'pending', 'sold', None], nullable=True),
        'owner': {'nullable': True, 'allOf': [{'type': 'object', 'properties': {'name': STRING},
        'required': ['name']}]}}, 'externalDocs': {'description': 'More about pets'}},
    'OpenAPI 3.1/animals': {'type': 'array', 'maxItems': 3,
        'items': {'oneOf': [{'$ref': '#/components/schemas/Cat'}, {'$ref': '#/components/schemas/Dog'}],
        'discriminator': {'propertyName': 'petType', 'mapping': {'cat': '#/components/schemas/Cat',
        'dog': '#/components/schemas/Dog'}}}, 'components': {'schemas': {'Pet': {'type': 'object',
        'required': ['petType'], 'properties': {'petType': STRING, 'name': text(maxLength=9)}},
        'Cat': {'allOf': [{'$ref': '#/components/schemas/Pet'}, {'type': 'object',
        'required': ['huntingSkill'], 'properties': {'petType': {'const': 'cat'},
        'huntingSkill': text(enum=['clueless', 'lazy', 'adventurous'], default='lazy')}}]},
        'Dog': {'allOf': [{'$ref': '#/components/schemas/Pet'}, {'type': 'object', 'required': ['packSize'],
        'properties': {'petType': {'const': 'dog'}, 'packSize': {'type': 'integer', 'format': 'int32',
        'minimum': 0}}}]}}}},
    'tool/without a type': {'properties': {'city': STRING, 'unit': {'enum': ['c', 'f']}},
        'required': ['city']},
    'tool/required but not declared': {'type': 'object', 'properties': {'a': STRING},
        'required': ['b', 'a', 'c'], 'additionalProperties': {'type': ['string', 'boolean']}},
    'tool/anything': {'type': 'object', 'additionalProperties': True, 'properties': {}},
    'tool/enum of all kinds': {'type': 'object', 'properties': {'value': {'enum': [None, True, 0, -1.5, '',
        'ä"\\\n', [], [1, 'a'], {}, {'k': [None], 'l': {'m': 1500}}]},
        'const': {'const': {'name': 'x', 'list': [1, 2.5]}}}, 'required': ['value'],
        'additionalProperties': False},
}


def drafts():
    for name, schema in DRAFTS.items():
        yield name, 'written by hand after the documentation of JSON Schema and OpenAPI', schema


# ---- files in packages ----

PACKAGED = {
    'jsonschema-specifications': ['schemas/draft4/metaschema.json', 'schemas/draft6/metaschema.json',
                                  'schemas/draft7/metaschema.json'],
    'nbformat': ['v3/nbformat.v3.schema.json', 'v4/nbformat.v4.5.schema.json'],
    'check-jsonschema': ['builtin_schemas/vendor/%s.json' % name for name in (
        'codecov', 'readthedocs', 'changie', 'github-discussion', 'github-issue-config', 'github-actions',
        'taskfile', 'cloudbuild', 'meltano', 'bamboo-spec')],
    'cyclonedx-python-lib': ['schema/_res/jsf-0.82.SNAPSHOT.schema.json'],
    'openapi-spec-validator': ['resources/schemas/v3.0/schema.json'],
    'fastmcp': ['utilities/mcp_server_config/v1/schema.json'],
}
FOLDERS = {'jsonschema-specifications': 'jsonschema_specifications', 'check-jsonschema': 'check_jsonschema',
           'cyclonedx-python-lib': 'cyclonedx', 'openapi-spec-validator': 'openapi_spec_validator',
           'kubernetes-validate': 'kubernetes_validate'}
KUBERNETES = ['httpgetaction-v1', 'probe-v1', 'networkpolicyspec-networking-v1',
              'horizontalpodautoscalerspec-autoscaling-v2', 'jsonschemaprops-apiextensions-v1']


def folder_of(package):
    return os.path.dirname(importlib.import_module(FOLDERS.get(package, package)).__file__)


def load(*path):
    with open(os.path.join(*path), encoding='utf-8') as file:
        return json.load(file)


def bundled(schema, keyword, definitions, file):
    """The schema, with those definitions of another file in it to which it refers, and they in turn."""
    used, todo = {}, [schema]
    while todo:
        at = todo.pop()
        todo += at.values() if isinstance(at, dict) else at if isinstance(at, list) else []
        if isinstance(at, dict) and isinstance(at.get('$ref'), str) and at['$ref'].startswith(('#', file)):
            at['$ref'] = '#' + at['$ref'].split('#')[1]
            name = at['$ref'].split('/')[2]
            if name not in used:
                used[name] = definitions[name]
                todo.append(used[name])
    return {**schema, keyword: {name: used[name] for name in sorted(used)}}


def packaged():
    for package, paths in PACKAGED.items():
        for path in paths:
            with passing_over('%s %s' % (package, path)):
                name = os.path.basename(path) if package != 'openapi-spec-validator' else path[-16:]
                if name == 'metaschema.json':
                    name = path[8:]
                yield '%s/%s' % (package, name.replace('.json', '').replace('.schema', '')), '%s %s' % (
                    package, version(package)), load(folder_of(package), path)
    with passing_over('pyhf'):
        folder = os.path.join(folder_of('pyhf'), 'schemas', '1.0.0')
        definitions = load(folder, 'defs.json')['definitions']
        for name in ('workspace', 'jsonpatch'):
            made = bundled({'$schema': DRAFT_6, '$ref': 'defs.json#/definitions/' + name}, 'definitions',
                           definitions, 'defs.json')
            yield 'pyhf/' + name, 'pyhf %s, with its definitions beside it' % version('pyhf'), made
    with passing_over('kubernetes-validate'):
        folder = os.path.join(folder_of('kubernetes-validate'), 'kubernetes-json-schema')
        newest = max(os.listdir(folder), key=lambda name: ([int(n) for n in re.findall(r'\d+', name)],
            'strict' in name))
        definitions = load(folder, newest, '_definitions.json')['$defs']
        for name in KUBERNETES:
            made = bundled(load(folder, newest, name + '.json'), '$defs', definitions,
                           '/api/_definitions.json')
            yield 'kubernetes/' + name, 'kubernetes-validate %s, %s, with its definitions beside it' % (
                version('kubernetes-validate'), newest), made


# ---- all of them ----

LARGEST = 40000


def version(package):
    return importlib.metadata.version(package)


@contextlib.contextmanager
def passing_over(what):
    """What is missing or fails is named, and the rest goes on."""
    try:
        yield
    except (Exception, SystemExit) as error:                        # a package may raise anything
        print('%s: %s: %s' % (what, type(error).__name__, str(error).split('\n')[0][:200]), file=sys.stderr)


def shape(schema):
    """What two schemas have in common that differ in names and notes only."""
    if isinstance(schema, list):
        return [shape(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {}
    for key, value in schema.items():
        if key in ('title', 'description', 'default', 'examples', '$id', '$comment') and not isinstance(value,
            dict):
            continue
        if key in ('properties', '$defs', 'definitions') and isinstance(value, dict):
            made[key] = [shape(inner) for inner in value.values()]
        elif key in ('required', 'const', 'enum', '$ref'):
            made[key] = len(value) if isinstance(value, list) else type(value).__name__
        else:
            made[key] = shape(value)
    return made


def main():
    names, shapes = set(), set()
    for group in (pydantic_2, pydantic_1, package_models, strict_models, anthropic_models, fastmcp_functions,
                  mcp_functions, langchain_functions, agents_functions, pydantic_ai_functions, mcp_servers,
                  zod_4, zod_3, drafts, packaged):
        with passing_over(group.__name__):
            for name, source, schema in group():
                with passing_over(name):
                    schema = json.loads(json.dumps(schema))
                    jsonschema.validators.validator_for(schema,
                                                        jsonschema.Draft202012Validator).check_schema(schema)
                    line = json.dumps({'name': name, 'source': source, 'schema': schema}, ensure_ascii=False)
                    key = json.dumps(shape(schema), sort_keys=True)
                    if name in names or key in shapes:
                        raise ValueError('there is one like it')
                    if len(line.encode()) > LARGEST:
                        raise ValueError('%d bytes are too many' % len(line.encode()))
                    names.add(name)
                    shapes.add(key)
                    print(line)
    print('%d schemas' % len(names), file=sys.stderr)


if __name__ == '__main__':
    main()
