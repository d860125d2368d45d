"""The scripts of the Redis store: every step that must be atomic runs in the server.

All keys of a script share a hash tag, `{<prefix>.<shard>}`, so it runs on a cluster too. It is given the slot's state and index as KEYS,
and makes the keys of cells, of which there may be thousands, from their common beginning. Lua does not roll back, so every script looks at
everything first, and writes then. Numbers of 64 bits stay decimal texts: Lua's own are doubles.

A slot's state is one text: `1 horizon latest arrived tables positions cursor`, positions being `partition:offset:through,...`, and the
cursor `-` for none, or `+` and the cursor. A cell is one string: a zero byte and the tail; or a one byte, k (int64), the lengths of
vector and value (uint32 each, all little-endian), the vector, the value, the tail.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

_COMMON = """
local BEGINNING = '{beginning}'

-- Whether the integer a is above b, as decimal texts.
local function above(a, b)
  local down = string.byte(a) == 45
  if down ~= (string.byte(b) == 45) then return not down end
  if #a ~= #b then return (#a > #b) ~= down end
  if down then return a < b end
  return a > b
end

local function highest(a, b)
  if above(b, a) then return b end
  return a
end

local function empty(horizon)
  return {{
    horizon = horizon, latest = BEGINNING, arrived = BEGINNING, cursor = '-',
    tables = {{}}, order = {{}}, offsets = {{}}, through = {{}}
  }}
end

local function load(key)
  local raw = redis.call('GET', key)
  local s = empty(BEGINNING)
  if not raw then return s, false end
  local version, horizon, latest, arrived, tables, positions, cursor = string.match(raw, '^(%d+) (%S+) (%S+) (%S+) (%S*) (%S*) (.*)$')
  if version ~= '1' then return redis.error_reply('TIDEMILL a slot of unknown form: ' .. key) end
  s.horizon, s.latest, s.arrived, s.cursor = horizon, latest, arrived, cursor
  for t in string.gmatch(tables, '[^,]+') do s.tables[t] = true end
  for p, offset, through in string.gmatch(positions, '(%d+):(%d+):(-?%d*)') do
    s.order[#s.order + 1] = p
    s.offsets[p], s.through[p] = offset, through
  end
  return s, true
end

local function save(key, s)
  local tables, positions = {{}}, {{}}
  for t in pairs(s.tables) do tables[#tables + 1] = t end
  table.sort(tables)
  for i, p in ipairs(s.order) do positions[i] = p .. ':' .. s.offsets[p] .. ':' .. s.through[p] end
  local held, places = table.concat(tables, ','), table.concat(positions, ',')
  redis.call('SET', key, table.concat({{'1', s.horizon, s.latest, s.arrived, held, places, s.cursor}}, ' '))
end

local function place(s, p, offset)
  if not s.offsets[p] then
    s.order[#s.order + 1] = p
    s.through[p] = ''
  end
  s.offsets[p] = offset
end

-- k, vector, value and tail of a cell, and whether it is there.
local function cell(key)
  local raw = redis.call('GET', key)
  if not raw then return 0, '', '', '', false end
  if string.byte(raw) == 0 then return 0, '', '', string.sub(raw, 2), true end
  local k, nv, np = struct.unpack('<i8I4I4', raw, 2)
  return k, string.sub(raw, 18, 17 + nv), string.sub(raw, 18 + nv, 17 + nv + np), string.sub(raw, 18 + nv + np), true
end

-- Fails here, before anything is written, where a key is not on this node: a cluster moves the slot just now, and what a script has
-- written before it fails stays. (Lua unpacks some thousands of values at most.)
local function touch(keys)
  for i = 1, #keys, 1000 do redis.call('EXISTS', unpack(keys, i, math.min(i + 999, #keys))) end
end

-- Entity by entity, all of its cells or none. ARGV[at] is how many entities; per entity its name and how many cells; per cell table,
-- length and digest of the prefix, tail, and k ('' for no publish), vector, value.
local function change(s, index, cells, at)
  local done, any = {{}}, false
  local count = tonumber(ARGV[at])
  at = at + 1
  local keys, there = {{}}, at
  for e = 1, count do
    local entity, n = ARGV[there], tonumber(ARGV[there + 1])
    for c = 0, n - 1 do keys[#keys + 1] = cells .. ARGV[there + 2 + 7 * c] .. ':' .. entity end
    for t in pairs(s.tables) do keys[#keys + 1] = cells .. t .. ':' .. entity end
    there = there + 2 + 7 * n
  end
  touch(keys)
  for e = 1, count do
    local entity, n = ARGV[at], tonumber(ARGV[at + 1])
    at = at + 2
    local made, fits = {{}}, true
    for c = 1, n do
      local t, length, digest, tail, pk = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
      local key = cells .. t .. ':' .. entity
      local k, vector, value, old, there = cell(key)
      if #old < length or redis.sha1hex(string.sub(old, 1, length)) ~= digest or (pk ~= '' and tonumber(pk) <= k) then
        fits = false
      else
        if pk ~= '' then k, vector, value = tonumber(pk), ARGV[at + 5], ARGV[at + 6] end
        made[#made + 1] = {{key, t, k, vector, value, tail .. string.sub(old, length + 1), there}}
      end
      at = at + 7
    end
    if fits then
      for _, m in ipairs(made) do
        local key, t, k, vector, value, tail, there = unpack(m)
        if k == 0 and tail == '' then
          redis.call('DEL', key)
          local other = false
          for o in pairs(s.tables) do other = other or (o ~= t and redis.call('EXISTS', cells .. o .. ':' .. entity) == 1) end
          if not other then redis.call('ZREM', index, entity) end
        elseif k == 0 then
          redis.call('SET', key, '\\0' .. tail)
        else
          redis.call('SET', key, '\\1' .. struct.pack('<i8I4I4', k, #vector, #value) .. vector .. value .. tail)
        end
        if (k ~= 0 or tail ~= '') and not there then redis.call('ZADD', index, 0, entity) end
        s.tables[t] = true
      end
      any = true
    end
    done[e] = fits and 1 or 0
  end
  return done, any
end
"""

_APPLY = """
local s = load(KEYS[1])
if s.err then return s end
local p, start, stop, through = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if s.cursor ~= '-' or (s.offsets[p] or '0') ~= start then return 0 end
local keys = {}
for i = 9, #ARGV, 3 do keys[#keys + 1] = ARGV[1] .. ARGV[i] .. ':' .. ARGV[i + 1] end
touch(keys)
for i = 9, #ARGV, 3 do
  local data, key = ARGV[i + 2], keys[(i - 6) / 3]
  if redis.call('APPEND', key, data) == #data then
    redis.call('SET', key, '\\0' .. data)
    redis.call('ZADD', KEYS[2], 0, ARGV[i + 1])
  end
  s.tables[ARGV[i]] = true
end
place(s, p, stop)
if above(through, BEGINNING) and (s.through[p] == '' or above(through, s.through[p])) then s.through[p] = through end
s.horizon, s.latest, s.arrived = highest(s.horizon, ARGV[6]), highest(s.latest, ARGV[7]), highest(s.arrived, ARGV[8])
save(KEYS[1], s)
return 1
"""

_REWRITE = """
local s = load(KEYS[1])
if s.err then return s end
local done, any = change(s, KEYS[2], ARGV[1], 3)
if any then
  s.horizon = highest(s.horizon, ARGV[2])
  save(KEYS[1], s)
end
return done
"""

# ARGV: cells, horizon, the cursor expected, the cursor then, positions (p:offset,...), changes.
_REBUILD = """
local s = load(KEYS[1])
if s.err then return s end
if s.cursor ~= ARGV[3] or (ARGV[3] == '-' and #s.order > 0) then return 0 end
change(s, KEYS[2], ARGV[1], 6)
for p, offset in string.gmatch(ARGV[5], '(%d+):(%d+)') do place(s, p, highest(s.offsets[p] or '0', offset)) end
s.horizon, s.cursor = highest(s.horizon, ARGV[2]), ARGV[4]
save(KEYS[1], s)
return 1
"""

_RESET = """
local s, there = load(KEYS[1])
if s.err then return s end
if not there then return 0 end
local keys = {}
for _, entity in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  for t in pairs(s.tables) do keys[#keys + 1] = ARGV[1] .. t .. ':' .. entity end
end
touch(keys)
for i = 1, #keys, 1000 do redis.call('UNLINK', unpack(keys, i, math.min(i + 999, #keys))) end
redis.call('DEL', KEYS[2])
save(KEYS[1], empty(s.horizon))
return 1
"""

# A stretch of the index: ARGV cells, table, where to begin, how many to look at. Per entity its name and the lengths of vector, value
# and tail (-1: no cell in this table).
_LENGTHS = """
local out = {}
for _, entity in ipairs(redis.call('ZRANGEBYLEX', KEYS[2], ARGV[3], '+', 'LIMIT', 0, tonumber(ARGV[4]))) do
  local key = ARGV[1] .. ARGV[2] .. ':' .. entity
  local size = redis.call('STRLEN', key)
  local nv, np, nt = -1, -1, -1
  if size > 0 then
    local head = redis.call('GETRANGE', key, 0, 16)
    nv, np, nt = 0, 0, size - 1
    if string.byte(head) == 1 then
      local _
      _, nv, np = struct.unpack('<i8I4I4', head, 2)
      nt = size - 17 - nv - np
    end
  end
  out[#out + 1] = {entity, nv, np, nt}
end
return out
"""

_BEAT = """
for i = 1, #ARGV, 3 do
  local old = redis.call('HGET', KEYS[1], ARGV[i])
  local new = ARGV[i + 1] .. ':' .. ARGV[i + 2]
  if not old or not above(string.match(old, ':(.*)$'), ARGV[i + 2]) then redis.call('HSET', KEYS[1], ARGV[i], new) end
end
return 1
"""


@dataclass(frozen=True)
class Script:
    """A script's text, and the SHA-1 under which a server that has seen it knows it."""

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest())


def _script(text: str) -> Script:
    from tidemill.times import BEGINNING

    return Script(_COMMON.format(beginning=BEGINNING) + text)


APPLY, REWRITE, REBUILD, RESET, LENGTHS, BEAT = map(_script, (_APPLY, _REWRITE, _REBUILD, _RESET, _LENGTHS, _BEAT))
