-- Dead letters: looking through them, and putting them back into the queue.

local LOOK_LIMIT = 500 -- letters one call looks at
local LOOK_BYTES = 4194304 -- and bytes of their documents
local LOOK_STEP = 20 -- letters read at a time, for each may have a megabyte

-- Whether a letter may be meant. What its document holds is only looked for as text: the caller parses what is left.
local function is_meant(letter, argv)
  local fields = fields_of(letter[2])
  local document = fields.m or ''
  local meant = (argv[5] == '' or fields.reason == argv[5])
    and (argv[6] == '' or fields.i == argv[6])
    and (argv[7] == '' or string.find(string.lower(fields.error or ''), argv[7], 1, true) ~= nil)
  for i = 9, #argv do
    meant = meant and string.find(document, argv[i], 1, true) ~= nil
  end
  return meant, #document
end

-- letters: look through the dead letters, so far as one call may.
-- ARGV: 1 where to begin and 2 where to end, as XRANGE or (3 "1") XREVRANGE takes them, 4 most letters to return;
-- of which each must have: 5 this reason, 6 this message id, 7 this text (in lower case) in its error, each "" for any,
-- from 9 all of these texts in its document. 8 "1": their ids are enough.
-- Returns { the last letter looked at or "" if there are no more, how many were looked at, letters or their ids }.
local function letters(keys, argv)
  local P = prefix_of(keys)
  local command = argv[3] == '1' and 'XREVRANGE' or 'XRANGE'
  local from, wanted = argv[1], tonumber(argv[4])
  local found, looked, bytes = {}, 0, 0
  while true do
    local some = redis.call(command, P .. 'dead', from, argv[2], 'COUNT', LOOK_STEP)
    for _, letter in ipairs(some) do
      local meant, size = is_meant(letter, argv)
      looked, bytes = looked + 1, bytes + size
      if meant then
        found[#found + 1] = argv[8] == '1' and letter[1] or letter
      end
      if #found == wanted or looked == LOOK_LIMIT or bytes >= LOOK_BYTES then
        return { letter[1], looked, found }
      end
      from = '(' .. letter[1]
    end
    if #some < LOOK_STEP then
      return { '', looked, found }
    end
  end
end

-- Forget how messages ended before.
local function forget_finals(P, ids)
  local current = redis.call('GET', P .. 'sg')
  if current then
    local generation = tonumber(string.match(current, '^%d+'))
    for g = generation, generation - GENERATIONS, -1 do
      redis.call('HDEL', P .. 'st:' .. g, unpack(ids))
    end
  end
end

-- redrive: put letters back into the queue, each as a new message under its old id, whatever the queue's bound.
-- ARGV per letter: letter, message id, lane, ttl (ms), options.
-- Returns one character per letter: 1 done, 0 there is no such letter (any more), 2 a message of this id is pending.
local function redrive(keys, argv)
  local P, now = prefix_of(keys), now_ms()
  local results, ids, taken, done, size = {}, {}, {}, {}, 0
  for i = 2, #argv, 5 do
    ids[#ids + 1] = argv[i]
  end
  local pending = redis.call('HMGET', P .. 'ids', unpack(ids))
  for n, id in ipairs(ids) do
    local at = 5 * n - 4
    local letter = redis.call('XRANGE', P .. 'dead', argv[at], argv[at])[1]
    if not letter then
      results[n] = '0'
    elseif pending[n] or taken[id] then
      results[n] = '2'
    else
      local lane, words = argv[at + 2], argv[at + 4]
      local meta = as_14(now + tonumber(argv[at + 3])) .. (words == '' and '' or ' ' .. words)
      local document = fields_of(letter[2]).m
      local key, entry = options_of(words).o, nil
      if key then
        if redis.call('HGET', P .. 'halting', argv[at]) == key then
          end_halt(P, key, argv[at]) -- its message goes before all that wait
        end
        entry = add_in_order(P, key, id, lane, meta, document, now)
      else
        entry = redis.call('XADD', P .. 'q:' .. lane, '*', 'm', meta .. '\n' .. id .. '\n' .. document)
      end
      size = size + #document
      redis.call('HSET', P .. 'ids', id, lane .. ' ' .. entry)
      redis.call('XDEL', P .. 'dead', argv[at])
      taken[id], done[#done + 1] = true, id
      results[n] = '1'
    end
  end
  if #done > 0 then
    redis.call('INCRBY', P .. 'bytes', size)
    forget_finals(P, done)
    wake(P)
  end
  return table.concat(results)
end

define('letters', letters, { 'no-writes' })
define('redrive', redrive, { 'allow-oom' })
