"""What comes after a loop whose length only the device knows, counted in a program's text."""

from experiments.benchmarks import operations

KNOWN = ', backend_config={"known_trip_count":{"n":"16"}}'
PROGRAM = """HloModule jit_step, is_scheduled=true

%body (p: (s32[])) -> (s32[]) {{
  %p = (s32[]) parameter(0)
  ROOT %tuple.1 = (s32[]) tuple(%p)
}}

ENTRY %main (x: f32[8]) -> (f32[8], f32[8]) {{
  %x = f32[8]{{0}} parameter(0)
  %fusion = (f32[8]{{0}}, /*index=1*/s8[4]{{0}}) fusion(%x), kind=kLoop, calls=%fused
  %first = (s32[]) while(%tuple.2), condition=%condition, body=%body{first}
  %get-tuple-element.1 = f32[8]{{0}} get-tuple-element(%fusion), index=0
  %second = (s32[], f32[8]{{0}}) while(%tuple.3), condition=%condition, body=%body{second}
  %copy.1 = f32[8]{{0}} copy(%get-tuple-element.1), metadata={{op_name="while (x) = y("}}
  %all-reduce-start = f32[8]{{0}} all-reduce-start(%copy.1), to_apply=%add
  ROOT %tuple.4 = (f32[8]{{0}}, f32[8]{{0}}) tuple(%copy.1, %x)
}}
"""


def after(first: str, second: str) -> int:
    counted = operations.of_program(PROGRAM.format(first=first, second=second))
    assert counted["operations"] == 5
    return counted["operations_after_wait"]


def test_what_the_host_queues_late_comes_after_the_last_loop_of_unknown_length():
    assert after(KNOWN, "") == after("", "") == 2
    assert after("", KNOWN) == 3
    assert after(KNOWN, KNOWN) == 0
