-- What every function shares. The files of this folder are one library, put together in a fixed order; the library
-- and its functions carry the hash of their content in their names, so that versions can share a server.
--
-- KEYS[1] of every call is the agent's gate, "ah:{instance/namespace/hive/agent}:gate". All other keys are made from
-- its prefix, so they live in the same Cluster slot:
--   q:<lane>      stream of one priority; an entry has one field, m (see split_entry)
--   b:<lane>      list of entries that wait to be claimed again: handed back, orphaned, or a retry that is due
--   s:<lane>      the same list for suspects: entries during whose handling the process died twice or more
--   alone         hash, consumer -> "<lane> <entry>" of the last suspect it was given; it gets one at a time
--   ids           hash, message id -> "<lane> <entry>[ <accepted>]", of every message that is not finished; accepted is
--                 there where the entry's own time does not tell it
--   tries         hash, "<lane> <entry>" -> attempts that failed or crashed, of messages that had one
--   past          hash, "<lane> <entry>" -> "<first claimed> <last claimed> <crashes>", of the same messages
--   delayed       sorted set by due time of what must wait: "r<lane> <entry>" (a retry) or "h<id>" (in held)
--   held          hash, message id -> packed entry ("<lane><field m>"), of messages whose not_before has not come or
--                 that wait behind another one of their ordering key (those keys: order.lua)
--   bytes         size of the documents in q and held, i.e. of every message that is not finished
--   consumers     sorted set, consumer -> when its lease runs out (ms)
--   robbed        set of consumers that lost their lease and whose entries are being returned
--   wake          list of at most two tokens; idle consumers wait on it
--   alarm         "<due ms> <consumer>[ <deputy>]": which parked consumer wakes by itself when the next delay ends, and
--                 which one a little later, should the first have died
--   st:<n>, sg    final statuses in generations, and the current generation "<n> <started ms>"
--   dd:<n>, dg    deduplication keys in generations, each with "<accepted ms> <message id>"
--   dead          stream of dead letters
--   r:<id>        the reply to a request
--   u:<id>        there as long as that reply is, if nobody listened for it
--   counts        hash of what was dropped: dead_letters (by their bound), replies (their asker was gone)
--   closed        there while the hive moves to another server: see CLOSED
--   e:<caller>    how many connections a sender or consumer has lost, if any: see fenced
--   every:<name>  how far a schedule is, see every.lua
-- (Of the cache KEYS[1] is the hive's own gate, see cache.lua.)
--
-- Ownership. A claimed entry is pending in the group under its consumer's name until that consumer completes it or is
-- robbed of everything it has. The name is the claim token: it names one incarnation of one process and is never used
-- again once robbed. So one look at `consumers` tells whether whatever a consumer says is still its to say.
--
-- Every time is in ms of the server's clock. Nothing here works per message where a list of arguments can be handed on
-- as it came: a step in Lua costs as much as the command itself.

local VERSION = '@VERSION@'
local GROUP = 'agents'
local NOBODY = 'nobody' -- the group's consumer that holds entries which were read once and wait to be claimed again
local GENERATIONS = 4
local STATUS_LIMIT = 200000 -- final statuses kept per agent, whatever their age
local KEYS_LIMIT = 500000 -- deduplication keys kept per agent, whatever their age
local DEAD_LIMIT = 100000 -- dead letters kept per agent
local FOREVER = 90000000000000
local DEPUTY_MS = 30 -- after the alarm
local MAX_ID = 512 -- bytes
local SUSPECT = 2 -- crashes from which on a message is a suspect
local LANES = { '1', '2', '3', '4' }
local NO_OPTIONS = {}

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

-- With 14 digits, so that two of them can be compared as text.
local function as_14(number)
  return string.format('%014d', math.max(0, math.min(number, FOREVER)))
end

-- Two idle consumers, if there are any, look at the queue: one would do, for who takes messages passes the word on if
-- more are left, but that one may have died without the server knowing. Who finds nothing left takes back the tokens.
local function wake(P)
  local tokens = redis.call('LLEN', P .. 'wake')
  if tokens == 0 then
    redis.call('RPUSH', P .. 'wake', '1', '1')
  elseif tokens == 1 then
    redis.call('RPUSH', P .. 'wake', '1')
  end
end

-- Somebody must be awake at `due`: wake one unless a parked consumer has its alarm set for then or earlier.
local function wake_by(P, due, now)
  local alarm = redis.call('GET', P .. 'alarm')
  local at = alarm and tonumber(string.match(alarm, '^%d+'))
  if not at or at > due or at <= now then -- one that has rung wakes nobody again
    wake(P)
  end
end

-- When the caller, about to be idle, must wake by itself: ms until the next delay ends (`due`), or -1 if others do it.
local function set_alarm(P, consumer, due, now)
  if not due then
    return -1
  end
  local wait, value = math.max(due - now, 1), consumer
  local at, holder, deputy = string.match(redis.call('GET', P .. 'alarm') or '', '^(%d+) (%S+) ?(%S*)')
  if at and holder ~= consumer and tonumber(at) <= due and tonumber(at) > now then
    if deputy ~= '' and deputy ~= consumer then
      return -1
    end
    due, wait, value = tonumber(at), tonumber(at) - now + DEPUTY_MS, holder .. ' ' .. consumer
  elseif holder == consumer and tonumber(at) == due and deputy ~= '' then
    value = holder .. ' ' .. deputy
  end
  redis.call('SET', P .. 'alarm', as_ms(due) .. ' ' .. value, 'PX', as_ms(wait + 1000))
  return wait
end

-- The consumer will not look when the alarm rings. Returns whether that leaves nobody who does.
local function drop_alarm_of(P, consumer)
  local at, holder, deputy = string.match(redis.call('GET', P .. 'alarm') or '', '^(%d+) (%S+) ?(%S*)')
  if holder == consumer then
    redis.call('DEL', P .. 'alarm')
    return true
  elseif deputy == consumer then
    redis.call('SET', P .. 'alarm', at .. ' ' .. holder, 'KEEPTTL')
  end
  return false
end

local function suspects_wait(P)
  return redis.call('EXISTS', P .. 's:1', P .. 's:2', P .. 's:3', P .. 's:4') > 0
end

-- A flat list of names and values as a table.
local function fields_of(list)
  local fields = {}
  for i = 1, #list, 2 do
    fields[list[i]] = list[i + 1]
  end
  return fields
end

-- Field m of an entry is three lines: expiry in 14 digits and options, if any; message id; JSON document. One field and
-- not three, because each string that Lua is handed costs as much as a command. Returns expiry, options, id, document, or
-- nil if the entry is malformed.
local function split_entry(list)
  if #list ~= 2 or list[1] ~= 'm' then
    return nil
  end
  local expiry, words, id, first = string.match(list[2], '^(%d%d%d%d%d%d%d%d%d%d%d%d%d%d) ?([^\n]*)\n([^\n]+)\n()')
  if not expiry or #id > MAX_ID then
    return nil
  end
  return expiry, words, id, string.sub(list[2], first)
end

-- So many bytes of documents left the queue. The number is right again whenever the queue was empty (see send), should
-- entries ever vanish by another way.
local function give_back(P, size)
  if size > 0 and redis.call('DECRBY', P .. 'bytes', size) <= 0 then
    redis.call('DEL', P .. 'bytes')
  end
end

-- Options of an entry: words of one letter and a value.
-- b not_before, a accepted (where the entry's own time does not tell), r max_retries, k0 no acknowledgement,
-- y reply address, l life of the reply, f1 not subject to the queue's bound. o ordering key and h1 on_fail: halt.
-- Only on the way to the queue: d
-- "<window ms>:<deduplication key>", percent-encoded.
-- A number that is none counts as absent: one entry's nonsense must not break the call that handles many.
local NUMBERS = { a = true, b = true, l = true, r = true }

local function options_of(words)
  if words == '' then
    return NO_OPTIONS
  end
  local options = {}
  for letter, value in string.gmatch(words, '(%a)(%S+)') do
    if not NUMBERS[letter] or (#value < 15 and string.find(value, '^%d+$')) then
      options[letter] = value
    end
  end
  return options
end

local function accepted_of(entry, options)
  return options.a or string.match(entry, '^%d+')
end

-- What a caller said before it lost its connection may reach the server after what it has said since, through a proxy or
-- as packets sent again by a slow network; by then it has been repeated. So a caller whose connection was lost raises its
-- fence, and what comes from before it is refused. `lost` is how many connections the caller had lost when it spoke.
local FENCE_MS = 3600000

local function raise_fence(P, caller, lost)
  if tonumber(lost) > tonumber(redis.call('GET', P .. 'e:' .. caller) or 0) then
    redis.call('SET', P .. 'e:' .. caller, lost, 'PX', FENCE_MS)
  end
end

local function fenced(P, caller, lost)
  return tonumber(lost) < tonumber(redis.call('GET', P .. 'e:' .. caller) or 0)
end

local FENCED = { err = 'ERR this was said before the connection was lost, and is repeated since' }

-- While a hive moves to another server (the operator sets `closed` at each agent and topic), nothing new gets in: what
-- comes from outside, and schedules. What an agent's process sends belongs to what was accepted and passes. Only those
-- who are outside say so and are asked: it costs an agent nothing.
local CLOSED = { err = 'CLOSED this hive moves to another Redis and takes nothing new meanwhile; send again a little later' }

local function closed(P)
  return redis.call('EXISTS', P .. 'closed') == 1
end

-- What one turn tells its caller beside the messages, for logs and figures: nil, or { bytes left for documents, replies
-- that nobody heard, letters { id, document or "" for want of room, reason, error, attempts } }.
local notes = nil

-- In a Cluster PUBLISH counts the listeners of its own node only, so that 0 does not mean that nobody has heard.
local in_cluster = nil
local function is_cluster()
  if in_cluster == nil then
    local answer = redis.pcall('CLUSTER', 'MYID')
    in_cluster = not (type(answer) == 'table' and answer.err)
  end
  return in_cluster
end

-- Put a reply where the asking process finds it, and tell it. The payload is a message, or "!" and why there is none.
-- A reply that nobody listens for is kept all the same, for the asker may only be between two connections; it counts as
-- dropped until it is fetched.
local function reply(P, id, address, life, payload)
  life = math.max(1, tonumber(life) or 60000)
  redis.call('SET', P .. 'r:' .. id, payload, 'PX', as_ms(life))
  local hive = string.match(P, '^ah:{(.+)/[^/]+}:$')
  if redis.call('PUBLISH', 'ah:{' .. hive .. '}:reply:' .. address, id) == 0
    and redis.call('SET', P .. 'u:' .. id, '', 'PX', as_ms(life), 'NX') then
    redis.call('HINCRBY', P .. 'counts', 'replies', 1)
    if notes and not is_cluster() then
      notes[2] = notes[2] + 1
    end
  end
end

-- What a message's id or key has left behind is kept in a few hashes, the oldest of which is dropped whole: no key and
-- no expiry per message, and a bound on their number. `pointer` is the key that says which of the hashes, `name` .. <n>,
-- is the current one.

-- The newest values of `fields`, false for each that has none.
local function find_kept(P, pointer, name, fields)
  local found = {}
  for i = 1, #fields do
    found[i] = false
  end
  local current = redis.call('GET', P .. pointer)
  if current then
    local generation = tonumber(string.match(current, '^%d+'))
    for g = generation, generation - GENERATIONS, -1 do
      local values = redis.call('HMGET', P .. name .. g, unpack(fields))
      for i = 1, #fields do
        found[i] = found[i] or values[i]
      end
    end
  end
  return found
end

-- The hash that takes values now, which are kept for `life` (ms). Returns its key, and whether it is new (then
-- `expire_kept`, once it holds something).
local function keep_in(P, pointer, name, limit, now, life)
  local current = redis.call('GET', P .. pointer)
  local generation, started = 0, 0
  if current then
    generation, started = string.match(current, '^(%d+) (%d+)$')
    generation, started = tonumber(generation), tonumber(started)
    local key = P .. name .. generation
    if now - started <= life / GENERATIONS and redis.call('HLEN', key) < limit / GENERATIONS then
      return key, false
    end
  end
  generation = generation + 1
  local key = P .. name .. generation
  redis.call('SET', P .. pointer, generation .. ' ' .. as_ms(now), 'PX', as_ms(life * 2))
  redis.call('UNLINK', key, P .. name .. (generation - GENERATIONS - 1))
  return key, true
end

local function expire_kept(key, life)
  redis.call('PEXPIRE', key, as_ms(life + life / GENERATIONS))
end

-- Final statuses of `ids`, false for each that has none.
local function finals_of(P, ids)
  return find_kept(P, 'sg', 'st:', ids)
end

-- The hash that takes final statuses now, each "code finished claimed attempts accepted[,first claimed] [error]" (d
-- delivered, f failed, e expired) by message id. Returns the key, and whether it is new (then `expire_kept`).
local function finals_key(P, now, life)
  return keep_in(P, 'sg', 'st:', STATUS_LIMIT, now, life)
end

local function keep_final(P, id, value, now, life)
  local key, fresh = finals_key(P, now, life)
  redis.call('HSET', key, id, value)
  if fresh then
    expire_kept(key, life)
  end
end
