-- How a handling ends.

-- Note an attempt that ended without an acknowledgement. Returns how many of them have ended by a crash.
local function note_attempt(P, field, claimed, crash)
  local first, crashes = string.match(redis.call('HGET', P .. 'past', field) or '', '^(%d+) %d+ (%d+)$')
  crashes = tonumber(crashes or 0) + crash
  redis.call('HSET', P .. 'past', field, (first or as_ms(claimed)) .. ' ' .. as_ms(claimed) .. ' ' .. crashes)
  return crashes
end

-- Take an entry out of the queue; `size` is that of its document.
local function remove(P, lane, entry, id, size)
  local stream = P .. 'q:' .. lane
  redis.call('XACK', stream, GROUP, entry)
  redis.call('XDEL', stream, entry)
  redis.call('HDEL', P .. 'tries', lane .. ' ' .. entry)
  redis.call('HDEL', P .. 'past', lane .. ' ' .. entry)
  if id then
    redis.call('HDEL', P .. 'ids', id)
    give_back(P, size)
  end
end

local NOTED = { expired = true, crashed = true, malformed = true } -- the reasons that no handler gave

-- Returns the letter's id.
local function write_dead_letter(P, id, document, reason, problem, attempts)
  local letter = redis.call('XADD', P .. 'dead', '*', 'i', id, 'm', document, 'reason', reason, 'error', problem,
    'attempts', attempts)
  local dropped = redis.call('XTRIM', P .. 'dead', 'MAXLEN', '~', DEAD_LIMIT)
  if dropped > 0 then
    redis.call('HINCRBY', P .. 'counts', 'dead_letters', dropped)
  end
  if notes and NOTED[reason] then
    if #document > notes[1] then
      document = ''
    end
    notes[1] = notes[1] - #document
    table.insert(notes[3], { id, document, reason, problem, attempts })
  end
  return letter
end

-- Give a message up: dead letter, final status, and word to whoever asked. `fields` is the entry's list of fields.
local function bury(P, lane, entry, fields, reason, problem, attempts, claimed, now, life)
  local _, words, id, document = split_entry(fields)
  local options = options_of(words)
  local first, last = string.match(redis.call('HGET', P .. 'past', lane .. ' ' .. entry) or '', '^(%d+) (%d+)')
  local letter = write_dead_letter(P, id, document, reason, problem, attempts)
  if options.y then
    reply(P, id, options.y, options.l, '!' .. reason .. ': ' .. problem)
  end
  remove(P, lane, entry, id, #document)
  if options.o then
    given_up_in_order(P, options, lane, entry, letter)
  end
  local code = reason == 'expired' and 'e' or 'f'
  keep_final(P, id, table.concat({
    code, as_ms(now), claimed == '0' and last or claimed, attempts,
    accepted_of(entry, options) .. (first and ',' .. first or ''), reason .. ': ' .. problem,
  }, ' '), now, life)
end

-- Take an entry from its owner; it stays in the stream and in the group, owned by nobody, until it is claimed again.
local function let_go(P, lane, entry)
  redis.call('XCLAIM', P .. 'q:' .. lane, GROUP, NOBODY, 0, entry, 'JUSTID')
end

-- What to add to the final statuses of messages that were tried before, by field of `tries`: "," and when each was first
-- claimed. The fields are in argv from `at`.
local function first_claims(P, argv, at, count)
  local firsts = {}
  for i, past in ipairs(redis.call('HMGET', P .. 'past', unpack(argv, at, at + count - 1))) do
    local first = past and string.match(past, '^%d+')
    firsts[argv[at + i - 1]] = first and ',' .. first
  end
  return firsts
end

-- The lane of acknowledgement number n (from 0).
local function lane_of(argv, at, n)
  for lane = 4, 1, -1 do
    n = n - tonumber(argv[at + 4 - lane])
    if n < 0 then
      return lane
    end
  end
end

-- Of `total` acknowledged messages, whose entries stand in argv from `first` and whose ids from `ids`, none is pending
-- any more. In a repetition an id may have been sent anew since: that message is another one.
local function forget_ids(P, argv, first, ids, total, again)
  if not again then
    redis.call('HDEL', P .. 'ids', unpack(argv, ids, ids + total - 1))
    return
  end
  for n, place in ipairs(redis.call('HMGET', P .. 'ids', unpack(argv, ids, ids + total - 1))) do
    if place and string.match(place, '^%d (%S+)') == argv[first + n - 1] then
      redis.call('HDEL', P .. 'ids', argv[ids + n - 1])
    end
  end
end

-- Acknowledge: entries and ids stand in argv one list after the other, by lane, and are handed on as they are. ARGV from
-- `at`: number of entries in lanes 4, 3, 2, 1, number of fields of `tries`, number of heads, size of all documents; the
-- entries, the fields, the ids, and for each head: of how many messages it is, the beginning of their final status, and
-- when they were accepted ("": their entries tell). Returns where the operations that follow begin.
local function acknowledge(P, argv, at, now, life, again)
  local first = at + 7
  local next_entry, gone = first, 0
  for lane = 4, 1, -1 do
    local count = tonumber(argv[at + 4 - lane])
    if count > 0 then
      local stream, last = P .. 'q:' .. lane, next_entry + count - 1
      redis.call('XACK', stream, GROUP, unpack(argv, next_entry, last))
      gone = gone + redis.call('XDEL', stream, unpack(argv, next_entry, last))
      next_entry = last + 1
    end
  end
  local total, tried, heads = next_entry - first, tonumber(argv[at + 4]), tonumber(argv[at + 5])
  local firsts = tried > 0 and first_claims(P, argv, next_entry, tried)
  if tried > 0 then
    redis.call('HDEL', P .. 'tries', unpack(argv, next_entry, next_entry + tried - 1))
    redis.call('HDEL', P .. 'past', unpack(argv, next_entry, next_entry + tried - 1))
  end
  local ids = next_entry + tried
  local after = ids + total
  if total > 0 then
    forget_ids(P, argv, first, ids, total, again)
    give_back(P, math.floor(argv[at + 6] * gone / total)) -- in a repetition none is there any more
    local finals, n = {}, 0
    for head = after, after + 3 * heads - 1, 3 do
      local text, accepted = argv[head + 1], argv[head + 2]
      for _ = 1, tonumber(argv[head]) do
        finals[2 * n + 1] = argv[ids + n]
        finals[2 * n + 2] = text .. (accepted == '' and argv[first + n] or accepted)
        if firsts then
          finals[2 * n + 2] = finals[2 * n + 2] .. (firsts[lane_of(argv, at, n) .. ' ' .. argv[first + n]] or '')
        end
        n = n + 1
      end
    end
    local key, fresh = finals_key(P, now, life)
    redis.call('HSET', key, unpack(finals))
    if fresh then
      expire_kept(key, life)
    end
  end
  return after + 3 * heads
end

-- The numbers (from 0) of the acknowledgements that a robbed consumer may not believe in, as text. One that the server
-- has done before, when only its answer was lost, was good.
local function refused_acknowledgements(P, argv, at, again)
  local total = argv[at] + argv[at + 1] + argv[at + 2] + argv[at + 3]
  local from, ids, refused = at + 7 + total + argv[at + 4], {}, {}
  for n = 1, total do
    ids[n] = argv[from + n - 1]
  end
  local finals = again and total > 0 and finals_of(P, ids) or NO_OPTIONS
  for n = 1, total do
    if not finals[n] then
      refused[#refused + 1] = n - 1
    end
  end
  return table.concat(refused, ' '), from + total + 3 * argv[at + 5]
end

local WIDTH = { p = 5, f = 8, d = 8, r = 3, o = 4 }

-- The other endings, from `at` to the end of argv:
--   p id address life reply                              answer a request
--   f lane entry id attempts claimed delay(ms) error     retry after delay
--   d lane entry id attempts claimed reason error        dead letter
--   r lane entry                                         hand back, not an attempt
--   o lane entry key                                     one of the messages just acknowledged has this ordering key
-- Each but the first and the last is checked against the group; in a repetition (`again`) what is no longer ours was done before.
-- Returns the numbers (from 0) of the operations that were refused, as text.
local function finish(P, argv, at, consumer, robbed, again, now, life)
  local refused, number, last = {}, 0, #argv
  local freed, earliest = false, nil
  while at <= last do
    local code, lane, entry = argv[at], argv[at + 1], argv[at + 2]
    if robbed then
      refused[#refused + 1] = number
    elseif code == 'p' then
      reply(P, argv[at + 1], argv[at + 2], argv[at + 3], argv[at + 4])
    elseif code == 'o' then
      finished_in_order(P, argv[at + 3], lane, entry)
    elseif #redis.call('XPENDING', P .. 'q:' .. lane, GROUP, entry, entry, 1, consumer) == 0 then
      if not again then
        refused[#refused + 1] = number
      end
    elseif code == 'r' then
      let_go(P, lane, entry)
      redis.call('RPUSH', P .. 'b:' .. lane, entry)
      freed = true
    else
      local attempts, claimed, detail, problem = argv[at + 4], argv[at + 5], argv[at + 6], argv[at + 7]
      local found = redis.call('XRANGE', P .. 'q:' .. lane, entry, entry)[1]
      local fields = found and found[2] or { 'm', as_14(0) .. '\n' .. argv[at + 3] .. '\n' }
      local due = code == 'f' and now + tonumber(detail)
      if due and as_14(due) < split_entry(fields) then
        let_go(P, lane, entry)
        redis.call('HSET', P .. 'tries', lane .. ' ' .. entry, attempts)
        note_attempt(P, lane .. ' ' .. entry, claimed, 0)
        redis.call('ZADD', P .. 'delayed', as_ms(due), 'r' .. lane .. ' ' .. entry)
        earliest = math.min(earliest or due, due)
      else
        if due then
          detail, problem = 'expired', 'its time to live ends before the next retry; ' .. problem
        end
        bury(P, lane, entry, fields, detail, problem, attempts, claimed, now, life)
      end
    end
    number = number + 1
    at = at + WIDTH[code]
  end
  if freed then
    wake(P)
  end
  if earliest then
    wake_by(P, earliest, now)
  end
  return table.concat(refused, ' ')
end
