"""A flag of the methods whose heads read three of the target's layers."""


def add_layer_ids(parser):
    """What a head's layer ids count."""
    parser.add_argument(
        "--layer-ids",
        choices=("config", "inputs", "outputs"),
        default="config",
        help="of the target's layers whose ids the head's config lists, what the head reads "
        "(config: known for the usual ids, and for speculators')",
    )
