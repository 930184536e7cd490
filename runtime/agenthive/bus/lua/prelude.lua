-- What every function shares. The files of this folder are one library, put together in a fixed order; the library
-- and its functions carry the hash of their content in their names, so that versions can share a server.
--
-- KEYS[1] of every call is the agent's gate, "ah:{instance/namespace/hive/agent}:gate". All other keys are made from
-- its prefix, so they live in the same Cluster slot:
--   q:<lane>      stream of one priority: fields i (message id), m (JSON document), o (delivery options, if any)
--   b:<lane>      list of entries that wait to be claimed again: handed back, orphaned, or a retry that is due
--   ids           hash, message id -> record, of every message that is not finished
--   delayed       sorted set by due time of what must wait: "r<lane> <entry> <id>" (a retry) or "h<id>" (in held)
--   held          hash, message id -> packed entry, of messages whose not_before has not come
--   consumers     sorted set, consumer -> when its lease runs out (ms)
--   wake          list with at most one token; idle consumers wait on it
--   alarm         "<due ms> <consumer>": which parked consumer wakes by itself when the next delay ends
--   st:<n>, sg    final statuses in generations, and the current generation "<n> <started ms>"
--   dead          stream of dead letters
--   r:<id>        the reply to a request
--
-- A record is one line, "expiry lane accepted entry attempts token claimed" (times in ms, expiry and accepted with 14
-- digits, so that expiry, lane and entry are found without taking the line apart: that is what a function spends its
-- time on). Whoever completes a message shows the record it got with the claim; when the record has changed since, the
-- message belongs to somebody else. token: "0" never claimed; "-<token>" let go by its owner; "~<token>" taken from it.

local VERSION = '@VERSION@'
local GROUP = 'agents'
local NOBODY = 'nobody' -- the group's consumer that holds entries which were read once and wait to be claimed again
local RECORD = '^(%d+) (%d) (%d+) (%S+) (%d+) (%S+) (%d+)$'
local LANE_AT, ENTRY_AT = 16, 33 -- where lane and entry stand in a record
local NEW = ' 0 0 0' -- how the record of a message ends that was never claimed
local NO_OPTIONS = {}
local GENERATIONS = 4
local STATUS_LIMIT = 200000 -- final statuses kept per agent, whatever their age
local DEAD_LIMIT = 100000 -- dead letters kept per agent
local FOREVER = 90000000000000

local function define(name, callback, flags)
  redis.register_function {
    function_name = 'agenthive_' .. VERSION .. '_' .. name,
    callback = callback,
    flags = flags,
  }
end

local function prefix_of(keys)
  return string.sub(keys[1], 1, -5)
end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function as_ms(number)
  return string.format('%d', math.max(0, math.min(number, FOREVER)))
end

-- As a record holds it: comparable as text.
local function as_14(number)
  return string.format('%014d', math.max(0, math.min(number, FOREVER)))
end

local function record_line(expiry, lane, accepted, entry, attempts, token, claimed)
  return expiry .. ' ' .. lane .. ' ' .. accepted .. ' ' .. entry .. ' ' .. attempts .. ' ' .. token .. ' ' .. claimed
end

local function place_of(record)
  return string.sub(record, LANE_AT, LANE_AT), string.match(record, '^%S+', ENTRY_AT)
end

-- One idle consumer, if there is one, looks at the queue. One token is enough: who takes it passes it on if more is left.
local function wake(P)
  if redis.call('LLEN', P .. 'wake') == 0 then
    redis.call('RPUSH', P .. 'wake', '1')
  end
end

-- Somebody must be awake at `due`: wake one unless a parked consumer has its alarm set for then or earlier.
local function wake_by(P, due)
  local alarm = redis.call('GET', P .. 'alarm')
  if not alarm or tonumber(string.match(alarm, '^%d+')) > due then
    wake(P)
  end
end

-- The fields of a stream entry as a table.
local function fields_of(list)
  local fields = {}
  for i = 1, #list, 2 do
    fields[list[i]] = list[i + 1]
  end
  return fields
end

-- Delivery options of an entry, words of one letter and a value: b not_before (ms), r max_retries, k0 no
-- acknowledgement, y reply address, x life of the reply (ms), f1 not subject to the queue's bound.
local function options_of(text)
  if not text or text == '' then
    return NO_OPTIONS
  end
  local options = {}
  for letter, value in string.gmatch(text, '(%a)(%S+)') do
    options[letter] = value
  end
  return options
end

-- Put a reply where the asking process finds it, and tell it. The payload is a message, or "!" and why there is none.
local function reply(P, id, address, life, payload)
  redis.call('SET', P .. 'r:' .. id, payload, 'PX', life)
  local hive = string.match(P, '^ah:{(.+)/[^/]+}:$')
  redis.call('PUBLISH', 'ah:{' .. hive .. '}:reply:' .. address, id)
end

-- Final statuses of `ids`, false for each that has none.
local function finals_of(P, ids)
  local found = {}
  for i = 1, #ids do
    found[i] = false
  end
  local current = redis.call('GET', P .. 'sg')
  if current then
    local generation = tonumber(string.match(current, '^%d+'))
    for g = generation, generation - GENERATIONS, -1 do
      local values = redis.call('HMGET', P .. 'st:' .. g, unpack(ids))
      for i = 1, #ids do
        found[i] = found[i] or values[i]
      end
    end
  end
  return found
end

-- Keep final statuses, `pairs` = {id, value, id, value ...}. They live in a few hashes, the oldest of which is dropped
-- whole: no key and no expiry per message, and a bound on their number.
local function keep_finals(P, pairs, now, life)
  local current = redis.call('GET', P .. 'sg')
  local generation, started = 0, 0
  if current then
    generation, started = string.match(current, '^(%d+) (%d+)$')
    generation, started = tonumber(generation), tonumber(started)
  end
  local key = P .. 'st:' .. generation
  local fresh = not current or now - started > life / GENERATIONS
    or redis.call('HLEN', key) >= STATUS_LIMIT / GENERATIONS
  if fresh then
    generation = generation + 1
    key = P .. 'st:' .. generation
    redis.call('SET', P .. 'sg', generation .. ' ' .. as_ms(now), 'PX', as_ms(life * 2))
    redis.call('UNLINK', key, P .. 'st:' .. (generation - GENERATIONS - 1))
  end
  redis.call('HSET', key, unpack(pairs))
  if fresh then
    redis.call('PEXPIRE', key, as_ms(life + life / GENERATIONS))
  end
end
