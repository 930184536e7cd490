-- How a handling ends. Nothing here is done before the caller has shown the record that Redis still holds.

-- Collects what one call finishes, so that it costs a few commands and not a few per message. Lists are filled by
-- counting: asking a table for its length is a search.
local function new_batch(P, now, life)
  local gone = { { n = 0 }, { n = 0 }, { n = 0 }, { n = 0 } }
  return {
    P = P, now = now, life = life, ids = { n = 0 }, finals = { n = 0 }, delivered = 'd ' .. as_ms(now) .. ' ',
    gone = gone, gone_by_name = { ['1'] = gone[1], ['2'] = gone[2], ['3'] = gone[3], ['4'] = gone[4] },
  }
end

-- lane: as text, as a record has it
local function drop(batch, lane, entry, id)
  local gone, ids = batch.gone_by_name[lane], batch.ids
  local n = gone.n + 1
  gone[n], gone.n = entry, n
  n = ids.n + 1
  ids[n], ids.n = id, n
end

local function add_final(batch, id, value)
  local finals = batch.finals
  local n = finals.n
  finals[n + 1], finals[n + 2], finals.n = id, value, n + 2
end

-- A final status: how it ended (d delivered, f failed, e expired), when, the record, and for the latter two why.
local function final(batch, code, id, record, problem)
  add_final(batch, id, code .. ' ' .. as_ms(batch.now) .. ' ' .. record .. ' ' .. problem)
end

local function delivered(batch, id, record)
  add_final(batch, id, batch.delivered .. record)
end

local function flush(batch)
  local P = batch.P
  for lane = 1, 4 do
    local gone = batch.gone[lane]
    if gone.n > 0 then
      local stream = P .. 'q:' .. lane
      redis.call('XACK', stream, GROUP, unpack(gone))
      redis.call('XDEL', stream, unpack(gone))
    end
  end
  if batch.ids.n > 0 then
    redis.call('HDEL', P .. 'ids', unpack(batch.ids))
  end
  if batch.finals.n > 0 then
    keep_finals(P, batch.finals, batch.now, batch.life)
  end
end

local function write_dead_letter(batch, id, document, reason, problem, attempts)
  redis.call('XADD', batch.P .. 'dead', 'MAXLEN', '~', DEAD_LIMIT, '*', 'i', id, 'm', document, 'reason', reason,
    'error', problem, 'attempts', attempts)
end

-- Give a message up: dead letter, final status, and word to whoever asked. `record` must be the one in force.
local function bury(batch, id, record, document, options, reason, problem)
  local _, lane, _, entry, attempts = string.match(record, RECORD)
  write_dead_letter(batch, id, document, reason, problem, attempts)
  if options.y then
    reply(batch.P, id, options.y, options.x, '!' .. reason .. ': ' .. problem)
  end
  drop(batch, lane, entry, id)
  final(batch, reason == 'expired' and 'e' or 'f', id, record, reason .. ': ' .. problem)
end

-- Take an entry from its owner; it stays in the stream and in the group, owned by nobody, until it is claimed again.
local function let_go(P, lane, entry)
  redis.call('XCLAIM', P .. 'q:' .. lane, GROUP, NOBODY, 0, entry, 'JUSTID')
end

-- The record of a message its owner lets go; `uncounted` attempts are taken off.
local function let_go_record(record, uncounted)
  local expiry, lane, accepted, entry, attempts, token, claimed = string.match(record, RECORD)
  return record_line(expiry, lane, accepted, entry, attempts - uncounted, '-' .. token, claimed)
end

-- Whether `record` was completed by this very call before its answer was lost.
local function done_before(current, status, record)
  if current then
    local held = select(6, string.match(current, RECORD))
    return held == '-' .. select(6, string.match(record, RECORD))
  end
  return status and string.find(status, ' ' .. record, 1, true) ~= nil
end

local WIDTH = { a = 3, y = 6, p = 6, f = 5, d = 5, r = 3 }

-- ops: a id record                        acknowledge
--      y id record address life reply     acknowledge and answer
--      p id record address life reply     answer only: the message was acknowledged when it was claimed
--      f id record delay(ms) error        retry after delay
--      d id record reason error           dead letter
--      r id record                        hand back, not an attempt
-- `again`: the call is a repetition; what it did the first time is not refused now.
-- Returns the numbers (from 0) of the operations that were refused, as text.
local function finish(batch, argv, from, again)
  local P, now = batch.P, batch.now
  local starts, ids, count, last = {}, {}, 0, #argv
  local at = from
  while at <= last do
    count = count + 1
    starts[count], ids[count] = at, argv[at + 1]
    at = at + WIDTH[argv[at]]
  end
  if count == 0 then
    return ''
  end

  local records = redis.call('HMGET', P .. 'ids', unpack(ids))
  local statuses = again and finals_of(P, ids)
  local refused, changed, done = {}, {}, {}
  local freed, earliest = false, nil
  for n = 1, count do
    at = starts[n]
    local id, code, record = ids[n], argv[at], argv[at + 2]
    if code == 'a' and records[n] == record and not done[id] then -- by far the most
      done[id] = true
      local lane, entry = place_of(record)
      drop(batch, lane, entry, id)
      delivered(batch, id, record)
    elseif code == 'p' then
      reply(P, id, argv[at + 3], argv[at + 4], argv[at + 5])
    elseif done[id] or records[n] ~= record then
      if not (again and done_before(records[n], statuses[n], record)) then
        refused[#refused + 1] = n - 1
      end
    else
      done[id] = true
      local lane, entry = place_of(record)
      if code == 'y' then
        drop(batch, lane, entry, id)
        delivered(batch, id, record)
        reply(P, id, argv[at + 3], argv[at + 4], argv[at + 5])
      elseif code == 'r' then
        let_go(P, lane, entry)
        redis.call('RPUSH', P .. 'b:' .. lane, entry)
        changed[#changed + 1] = id
        changed[#changed + 1] = let_go_record(record, 1)
        freed = true
      else
        local due = code == 'f' and now + tonumber(argv[at + 3])
        if due and as_14(due) < string.sub(record, 1, 14) then
          let_go(P, lane, entry)
          redis.call('ZADD', P .. 'delayed', as_ms(due), 'r' .. lane .. ' ' .. entry .. ' ' .. id)
          changed[#changed + 1] = id
          changed[#changed + 1] = let_go_record(record, 0)
          earliest = math.min(earliest or due, due)
        else
          local found = redis.call('XRANGE', P .. 'q:' .. lane, entry, entry)
          local fields = found[1] and fields_of(found[1][2]) or {}
          local reason = due and 'expired' or argv[at + 3]
          local problem = (due and 'its time to live ends before the next retry; ' or '') .. argv[at + 4]
          bury(batch, id, record, fields.m or '', options_of(fields.o), reason, problem)
        end
      end
    end
  end
  if #changed > 0 then
    redis.call('HSET', P .. 'ids', unpack(changed))
  end
  if freed then
    wake(P)
  end
  if earliest then
    wake_by(P, earliest)
  end
  return table.concat(refused, ' ')
end
