"""Official Conditional DETR checkpoints (Atten4Vis/ConditionalDETR, main and GroupDETR branches).

The group branch differs in the number of rows of `query_embed.weight` alone.
"""

from .official import COMMON_RULES, Converter

RULES = [
    (r"^query_embed\.weight$", "head.queries.bank.weight"),
    (r"^transformer\.decoder\.ref_point_head\.", "head.queries.ref_point_head."),
    (r"^transformer\.decoder\.query_scale\.", "head.decoder.query_position.query_scale."),
    *COMMON_RULES,
]
CONVERTER = Converter(RULES)
